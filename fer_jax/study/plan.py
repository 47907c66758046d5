"""Many runs one after another, each in a process of its own: what is done is skipped."""

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_jax.config import changed_fields, check_field, flatten, format_changes
from fer_jax.runs import workdir
from fer_jax.runs.stop import StopRequest
from fer_jax.study import design

log = logging.getLogger("fer_jax")

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "results" / "runs"

_GRACE_S = 5.0  # a run that did not hear a signal itself is told after this long


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a plan."""

    experiment: str  # names the run's folder
    seed: int
    record: Path  # where its record is kept
    flags: tuple[str, ...]  # of launch.py
    cost: float = 1.0  # grows with the time that the run takes
    levels: dict[str, str] | None = None  # of each factor, in a factor study

    @property
    def done(self) -> bool:
        """Whether there is a record."""
        return self.record.exists()


def plan(
    experiments: Sequence[str],
    seeds: int,
    shard: str,
    overrides: Sequence[str] = (),
    folder: Path = RUNS,
) -> list[Run]:
    """Lists the runs of some experiments.

    Args:
      experiments: names of files in `experiments/`.
      seeds: how many of each, counted from 0.
      shard: `i/n`, this machine's part, counted from 0: every n-th run of a seed, moved on by one
        from seed to seed, so that the parts take about the same time.
      overrides: `field=value`, such as `train.epochs=3`, given to every run.
      folder: where records of finished runs lie.

    Returns:
      The runs, done or not; all of one seed before the next, so that every row has a first result
      early.

    Raises:
      ValueError: for an experiment or a field that is not there, or a shard that is none.
    """
    known = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
    for name in experiments:
        if name not in known:
            raise ValueError(f"no experiment {name!r}; there are {', '.join(known)}")
    _check_overrides(overrides)
    runs = [
        Run(
            name,
            seed,
            folder / f"{name}_seed{seed}.json",
            _flags(ROOT / "experiments" / f"{name}.py", {"seed": seed}, overrides),
        )
        for seed in range(seeds)
        for name in experiments
    ]
    return _part(runs, len(experiments), shard)


def plan_study(
    path: Path,
    seeds: int | None,
    shard: str,
    overrides: Sequence[str] = (),
    results: Path = ROOT / "results",
) -> list[Run]:
    """Lists the runs that a study file declares; see :mod:`fer_jax.study.design`.

    Args:
      path: the study file.
      seeds: how many of each configuration, counted from 0; None: as many as the file says.
      shard: as in :func:`plan`.
      overrides: as in :func:`plan`.
      results: records are kept below it, in a folder with the study's name.

    Returns:
      The runs, done or not: all of one seed before the next, in each those that take little time
      first, so that a study that is stopped is balanced.

    Raises:
      ValueError: for a declaration that makes no sense, or a record of another configuration.
    """
    _check_overrides(overrides)
    study = design.load_study(path)
    cells = design.cells(study)
    runs = []
    for seed in range(study.seeds if seeds is None else seeds):
        for cell in cells:
            name = cell.config.experiment
            record = results / f"{name}_seed{seed}.json"
            _check_record(record, flatten(cell.config) | {"seed": seed}, overrides)
            fields = {"experiment": name, "seed": seed} | cell.changes
            flags = _flags(path.resolve(), fields, overrides)
            runs.append(Run(name, seed, record, flags, cell.cost, cell.levels))
    return _part(runs, len(cells), shard)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        field, equals, _ = override.partition("=")
        if not equals:
            raise ValueError(f"--override is {override!r}; it must be field=value")
        check_field(field, "--override=")


def _flags(file: Path, fields: dict[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    changed = [f"{field}={value}" for field, value in fields.items()]
    return (f"--config={file}", *(f"--config.{change}" for change in (*changed, *overrides)))


def _part(runs: list[Run], per_seed: int, shard: str) -> list[Run]:
    try:
        index, count = map(int, shard.split("/"))
        if not 0 <= index < count:
            raise ValueError
    except ValueError:
        raise ValueError(f"--shard is {shard!r}; it must be i/n with 0 <= i < n") from None
    return [run for i, run in enumerate(runs) if (i % per_seed + run.seed) % count == index]


def _check_record(path: Path, config: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuses a record that a study did not make, or made before its declaration changed."""
    found = workdir.read_json(path)
    if found is None:
        return
    changes = changed_fields(config, found["config"])
    for override in overrides:
        changes.pop(override.partition("=")[0], None)
    if changes:
        raise ValueError(
            f"{path} is the record of another configuration ({format_changes(changes)}); move it "
            "away, or give the study another name"
        )


def show(runs: Sequence[Run]) -> None:
    """Prints a plan, a line for each run."""
    for run in runs:
        print(f"{'done' if run.done else 'to do'}  {run.experiment}, seed {run.seed}")
    print(f"{len(runs)} runs, {sum(not run.done for run in runs)} to do")


def run(runs: Sequence[Run]) -> int:
    """Runs what has no record yet; a run that fails does not keep the others from running.

    Args:
      runs: a plan.

    Returns:
      An exit status: 0 if all is done, 1 if runs failed (they are listed at the end), 128 and the
      signal's number if interrupted.
    """
    todo = [run for run in runs if not run.done]
    log.info("%d runs, of which %d are done", len(runs), len(runs) - len(todo))
    failed: list[str] = []
    clock = _Clock(sum(run.cost for run in todo))
    with StopRequest() as stop:
        for i, run in enumerate(todo):
            title = f"{run.experiment}, seed {run.seed}"
            log.info("Run %d of %d: %s%s", i + 1, len(todo), title, clock.left())
            status = _launch(run, stop)
            if status == 0:
                _keep_record(run)
            signum = stop.signum or _signal_of(status)
            if signum:
                log.info("Stopped; the same command goes on from here")
                return 128 + signum
            if status:
                log.error("%s failed with status %d", title, status)
                failed.append(title)
            clock.done(run.cost)
    for title in failed:
        log.error("Failed: %s", title)
    return 1 if failed else 0


def _launch(run: Run, stop: StopRequest) -> int:
    """Runs one run to its end and returns its exit status; Ctrl-C it hears itself."""
    process = subprocess.Popen([sys.executable, str(ROOT / "launch.py"), *run.flags])
    while True:
        told = stop.signum == signal.SIGTERM
        try:
            return process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            if told:  # SIGTERM may have come to this process alone
                process.terminate()
                return process.wait()


def _signal_of(status: int) -> int:
    """Returns the signal that asked a run to stop; 0 if none did."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if status in (128 + signum, -signum):
            return signum
    return 0


def _keep_record(run: Run) -> None:
    """Copies a finished run's record to where records are kept, whole or not at all."""
    done = workdir.default_workdir(run.experiment, run.seed) / "results.json"
    found = json.loads(done.read_text())
    if run.levels is not None:
        # What a factor study has no use for makes up most of a record.
        found = {"levels": run.levels} | {k: v for k, v in found.items() if k != "predictions"}
    workdir.write_json(run.record, found)


class _Clock:
    """Tells how long the rest of a study takes, judging by what is done."""

    def __init__(self, total: float):
        self._started = time.perf_counter()
        self._total = total
        self._done = 0.0

    def done(self, cost: float) -> None:
        self._done += cost

    def left(self) -> str:
        if not self._done:
            return ""
        wall_s = time.perf_counter() - self._started
        left_s = wall_s / self._done * (self._total - self._done)
        return f", about {left_s / 60:.0f} min left"
