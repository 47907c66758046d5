"""Which runs a study makes, and which of them are done.

A run's name is its experiment's, with what `--override` changed behind it, such as
`arch03,epochs=3`. Only what the repository's own files declare, on the whole of FER2013, leaves
its record in `results/`, where the report looks; all else goes to `out/results/`, which git
ignores.
"""

import dataclasses
import logging
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.config import (
    FIELDS,
    Config,
    changed_fields,
    check_field,
    depends_on_length,
    flatten,
    format_changes,
    parse_text,
    validate,
)
from fer_jax.errors import ConfigError, RecordError
from fer_jax.runs import record
from fer_jax.study import design

log = logging.getLogger("fer_jax")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
OTHER_RESULTS = ROOT / "out" / "results"

type Record = dict[str, Any]  # what `results.json` of a run holds


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a plan."""

    experiment: str  # names the run's folder
    seed: int
    path: Path  # where its record is kept
    fields: Mapping[str, Any]  # the whole configuration, by path
    flags: tuple[str, ...]  # of launch.py
    cost: float = 1.0  # grows with the time that the run takes
    levels: dict[str, str] | None = None  # of each factor, in a factor study
    record: Record | None = None  # None: to do

    def __str__(self) -> str:
        """Names the run in a message."""
        return f"{self.experiment}, seed {self.seed}"


def plan(
    experiments: Sequence[str],
    seeds: int,
    shard: str,
    overrides: Sequence[str] = (),
    results: Path | None = None,
) -> list[Run]:
    """Lists the runs of some experiments.

    Args:
      experiments: names of files in `experiments/`.
      seeds: how many of each, counted from 0.
      shard: `i/n`, this machine's part, counted from 0: every n-th run of a seed, moved on by one
        from seed to seed, so that the parts take about the same time.
      overrides: `field=value`, such as `train.epochs=3`, given to every run.
      results: records are kept below it, in `runs`; None: see the module.

    Returns:
      The runs, done or not; all of one seed before the next, so that every row has a first result
      early.

    Raises:
      ConfigError: for an experiment, a field or a value that is not there, or a shard that is none.
      RecordError: for a record of another configuration.
    """
    runs = []
    configs = [_load(name) for name in experiments]
    changed = [_override(config, overrides) for config in configs]
    for seed in range(seeds):
        for name, config, is_other in zip(experiments, configs, changed, strict=True):
            folder = (results or _results(config, is_other)) / "runs"
            path = folder / f"{config.experiment}_seed{seed}.json"
            fields = flatten(config) | {"seed": seed}
            given = {"experiment": config.experiment, "seed": seed}
            flags = _flags(ROOT / "experiments" / f"{name}.py", given, overrides)
            found = find_record(path, fields)
            runs.append(Run(config.experiment, seed, path, fields, flags, record=found))
    return _part(runs, len(experiments), shard)


def plan_study(
    path: Path,
    seeds: int | None,
    shard: str,
    overrides: Sequence[str] = (),
    results: Path | None = None,
) -> list[Run]:
    """Lists the runs that a study file declares; see :mod:`fer_jax.study.design`.

    Args:
      path: the study file.
      seeds: how many of each configuration, counted from 0; None: as many as the file says.
      shard: as in :func:`plan`.
      overrides: as in :func:`plan`, for fields that are no factors of the study.
      results: records are kept below it, in a folder with the study's name; None: see the module.

    Returns:
      The runs, done or not: all of one seed before the next, in each those that take little time
      first, so that a study that is stopped is balanced.

    Raises:
      ConfigError: for a declaration or an override that makes no sense.
      RecordError: for a record of another configuration.
    """
    study = design.load_study(path)
    for field in sorted(design.factor_fields(study) & {_split(text)[0] for text in overrides}):
        raise ConfigError(f"--override={field}: {path} varies it; change it there")
    is_other = _override(study.base, overrides)
    results = results or _results(study.base, is_other)
    cells = design.cells(study)
    runs = []
    for seed in range(study.seeds if seeds is None else seeds):
        for cell in cells:
            name = cell.config.experiment
            record_path = results / f"{name}_seed{seed}.json"
            fields = flatten(cell.config) | {"seed": seed}
            given = {"experiment": name, "seed": seed} | cell.changes
            flags = _flags(path.resolve(), given, overrides)
            found = find_record(record_path, fields)
            runs.append(Run(name, seed, record_path, fields, flags, cell.cost, cell.levels, found))
    return _part(runs, len(cells), shard)


def find_record(path: Path, fields: Mapping[str, Any]) -> Record | None:
    """Returns the record of a run that is done.

    Args:
      path: where the run's record is kept.
      fields: the run's whole configuration, by path.

    Returns:
      The record; None if there is none, if it is not whole, or if it is of the same run at another
      length: then the run is still to be done, and its record takes this one's place.

    Raises:
      RecordError: if it is of another configuration, whose place no run may take.
    """
    if not path.exists():
        return None
    try:
        found = record.read(path)
    except RecordError as error:
        log.warning("%s; it does not count", error)
        return None
    before = found["config"]
    changes = changed_fields(fields, before, length=depends_on_length(fields))
    if changes:
        raise RecordError(
            f"{path} is the record of another configuration ({format_changes(changes)}); move it "
            "away, or give the experiment another name"
        )
    return None if changed_fields(fields, before) else found


def show(runs: Sequence[Run]) -> None:
    """Prints a plan, a line for each run."""
    for run in runs:
        print(f"{'done' if run.record else 'to do'}  {run}")
    print(f"{len(runs)} runs, {sum(run.record is None for run in runs)} to do")


def _load(experiment: str) -> Config:
    known = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
    if experiment not in known:
        raise ConfigError(f"no experiment {experiment!r}; there are {', '.join(known)}")
    return runpy.run_path(str(ROOT / "experiments" / f"{experiment}.py"))["get_config"]()


def _split(override: str) -> tuple[str, str]:
    """Parts `field=value`."""
    field, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--override is {override!r}; it must be field=value")
    check_field(field, "--override=")
    return field, text


def _override(config: Config, overrides: Sequence[str]) -> bool:
    """Changes a configuration, and its name; returns whether it is another one now."""
    before = flatten(config)
    for override in overrides:
        field, text = _split(override)
        if field in ("experiment", "seed"):
            raise ConfigError(f"--override={field}: the study sets it for each run")
        value = parse_text(field, text, "--override=")
        config.update_from_flattened_dict({field: value})
    validate(config)
    changes = changed_fields(config, before)
    for field, (_, value) in changes.items():
        value = Path(value).name if field == "train.start_from" else design.label_of(value)
        config.experiment += f",{_short(field)}={value}"
    return bool(changes)


def _short(field: str) -> str:
    """Returns a field's last word, if no other that may stand in a name ends in it."""
    word = field.split(".")[-1]
    in_names = (path for path, found in FIELDS.items() if found.scope in ("numbers", "length"))
    return word if sum(path.split(".")[-1] == word for path in in_names) == 1 else field


def _results(config: Config, is_other: bool) -> Path:
    whole = config.data.name == "fer2013" and not config.data.partial
    return OTHER_RESULTS if is_other or not whole else RESULTS


def _flags(file: Path, fields: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    changed = [f"{field}={value}" for field, value in fields.items()]
    return (f"--config={file}", *(f"--config.{change}" for change in (*overrides, *changed)))


def _part(runs: list[Run], per_seed: int, shard: str) -> list[Run]:
    try:
        index, count = map(int, shard.split("/"))
        if not 0 <= index < count:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--shard is {shard!r}; it must be i/n with 0 <= i < n") from None
    return [run for i, run in enumerate(runs) if (i % per_seed + run.seed) % count == index]
