"""The card of a network: what it is, how good, on what, and what it must not be used for.

All numbers come from the record that the weights keep. `python -m fer_jax.weights.card` writes the
cards of the shipped weights anew.
"""

import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.config import FIELDS, OTHER_RUNS, changed_fields, fill_defaults, get_config
from fer_jax.report import markdown, records, statistics
from fer_jax.runs import record, workdir
from fer_jax.weights import IN_REPOSITORY, SHIPPED, store

_TEMPLATE = Path(__file__).with_name("card.md")
_BITS = ", at that commit and on the same kind of processor to the same bits"
_LICENCE = "The weights are under the repository's licence (MIT). "
# Of the data set that most networks here are of.
_SPLITS = {"train": "train (Training)", "valid": "valid (PublicTest)", "test": "test (PrivateTest)"}
_FER2013 = """\
Data: FER2013 (Goodfellow et al. 2013, the ICML 2013 challenge). It is not part of this repository:
its pictures belong to others, and its competition's terms hold. They were found by a search engine
for words, cut out by a machine, and labelled by people; others agree with the labels about 0.65 of
the time. Who is on them, and of which age, origin or sex, is not recorded, so nothing is known of
how well the network works for whom."""


def calibration(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns a record's calibration on test.

    Args:
      found: a run's whole record.

    Returns:
      `error`, the expected calibration error on test; `temperature`, fitted on valid; and
      `error_scaled`, the error on test with it. Empty without predictions of both splits.
    """
    packed = found.get("predictions", {})
    if not {"valid", "test"} <= set(packed):
        return {}
    valid, test = (record.decode_predictions(packed[split]) for split in ("valid", "test"))
    temperature = statistics.temperature(*valid)
    scaled = statistics.scale(test[1], temperature)
    return {
        "error": round(statistics.calibration(*test).error, 4),
        "temperature": round(temperature, 3),
        "error_scaled": round(statistics.calibration(test[0], scaled).error, 4),
    }


def text(folder: Path, metadata: Mapping[str, Any]) -> str:
    """Returns the card as Markdown: `card.md` with the record's numbers.

    Args:
      folder: of the weights; it need not be there. Its name is theirs, and only of those that
        come with the package the card states a licence.
      metadata: what `fer_jax.weights.store.save` returned, with the record that `pack` keeps.
    """
    folder = folder.resolve()
    about = metadata["record"]
    test = about["metrics"]["test"]
    hits = round(test["accuracy"] * test["count"])
    low, high = statistics.wilson_interval(hits, test["count"])
    opened, data = about["test_evaluations"], about["dataset"]["name"]
    on_cpu = about["device"]["platform"] == "cpu"
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        name=folder.name,
        parameters=f"{about['parameters']:,}",
        network=metadata["model"]["name"],
        count=len(metadata["classes"]),
        classes=", ".join(metadata["classes"]),
        accuracies=_accuracies(about),
        openings="once" if opened == 1 else f"{opened} times",
        low=f"{low:.3f}",
        high=f"{high:.3f}",
        spread=_spread(about["experiment"]) if folder.parent in SHIPPED else "",
        calibration=_calibration(about.get("calibration")),
        recalls=_recalls(test, metadata["classes"]),
        experiment=about["experiment"],
        seed=about["seed"],
        best=about["best_epoch"],
        epochs=about["epochs_run"],
        minutes=_minutes(about["seconds"], on_cpu),
        bits=_BITS if on_cpu and _is_committed(about) else "",
        extra="" if on_cpu else "--extra cuda12 ",
        device=record.device_name(about["device"]),
        commit=_commit(about),
        flags=_flags(about),
        run=shlex.quote(f"checkpoints/{about['experiment']}_seed{about['seed']}"),
        data=_FER2013 if data == "fer2013" else f"Data: {data}.",
        licence=_LICENCE if folder.parent in SHIPPED else "",
        kernels=metadata["kernels"],
        sha256=metadata["sha256"],
    )


def _accuracies(about: Mapping[str, Any]) -> str:
    header = ("Split", "Images", "Accuracy", "without copies", "macro-F1", "loss (nats)")
    views = about.get("views", {"metrics": {}})
    names = _SPLITS if about["dataset"]["name"] == "fer2013" else {}
    rows = [[names.get(s, s), *_numbers(found)] for s, found in _sorted(about["metrics"])]
    rows += [
        [f"{names.get(s, s)}, mean over views (`{views['name']}`)", *_numbers(found)]
        for s, found in _sorted(views["metrics"])
    ]
    return markdown.table(header, rows)


def _sorted(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns what there is of train, valid and test, in this order."""
    return [(split, metrics[split]) for split in _SPLITS if split in metrics]


def _numbers(found: Mapping[str, Any]) -> list[str]:
    values = [found[name] for name in ("accuracy", "accuracy_unique", "macro_f1", "loss")]
    return [f"{found['count']:,}", *("-" if x is None else f"{x:.4f}" for x in values)]


def _spread(experiment: str) -> str:
    """Returns a sentence on the seeds of an experiment that have a record, if there are several."""
    runs = records.load_runs().get(experiment, [])
    row = records.main_row([found for found in runs if records.is_complete(found)])
    if len(row) < 2:
        return ""
    accuracy = records.over_seeds(row, "test", "accuracy")
    return f" Over {len(row)} recorded seeds of the experiment it is {accuracy}."


def _calibration(found: Mapping[str, float] | None) -> str:
    if not found:
        return ""
    return (
        f" Expected calibration error on test: {found['error']:.3f}; with a temperature of "
        f"{found['temperature']:.2f}, fitted on valid, {found['error_scaled']:.3f}."
    )


def _recalls(test: Mapping[str, Any], classes: Sequence[str]) -> str:
    rows = []
    for true, name in enumerate(classes):  # as the confusion matrix is sorted
        recall, counts = test["recall"][name], test["confusion"][true]
        wrong = [0 if i == true else n for i, n in enumerate(counts)]
        most = max(range(len(wrong)), key=wrong.__getitem__)
        taken = f"{classes[most]} ({wrong[most] / max(sum(counts), 1):.2f})"
        rows.append([name, sum(counts), "-" if recall is None else f"{recall:.2f}", taken])
    return markdown.table(("Class", "Images", "Recall", "Most often taken for"), rows, text=(3,))


def _minutes(seconds: Mapping[str, float], on_cpu: bool) -> str:
    if on_cpu and "train_cpu" in seconds:
        return f"{seconds['train_cpu'] / 60:.0f} core minutes of training"
    return f"{seconds['train'] / 60:.1f} minutes of training"


def _is_committed(about: Mapping[str, Any]) -> bool:
    """Returns whether a commit holds the code that ran."""
    git = about.get("git")
    return bool(git) and not git["modified"]


def _commit(about: Mapping[str, Any]) -> str:
    git = about.get("git")
    if not git:
        return "commit unknown"
    changed = "" if _is_committed(about) else " with changes that are not in it"
    return f"commit `{git['commit'][:12]}`{changed}"


def _flags(about: Mapping[str, Any]) -> str:
    """Returns what `launch.py` trains the same with: an experiment file, and the fields changed.

    Where other files lie, which no record tells, stands `PATH`.
    """
    name = about["experiment"].partition(",")[0]
    base = records.experiment_config(name)
    file = "fer_jax/config.py" if base is None else f"experiments/{name}.py"
    base, ours = fill_defaults(base or get_config()), fill_defaults(about["config"])
    changed = {field: now for field, (_, now) in changed_fields(ours, base).items()}
    if ours["train.devices"] != base["train.devices"]:  # which changes the last bits
        changed["train.devices"] = ours["train.devices"]
    if about["dataset"]["name"] == "folder":
        changed["data.source"] = "PATH"
    given = {field: now for field, now in changed.items() if field in FIELDS and field != "seed"}
    given["seed"] = about["seed"]
    changes = (
        f"--config.{field}={_value(field, now)}"
        for field, now in given.items()
        if now is not None  # for which a command line has no word
    )
    return shlex.join([f"--config={file}", *changes])


def _value(field: str, value: Any) -> Any:
    """Returns a field's value as the command line takes it; JSON has lists for tuples."""
    if field in OTHER_RUNS:  # known by name alone
        value = f"PATH/{value}" if isinstance(value, str) else [f"PATH/{run}" for run in value]
    return str(tuple(value)).replace("'", '"') if isinstance(value, list) else value


def _write_shipped() -> None:
    for folder in sorted(path for path in IN_REPOSITORY.iterdir() if path.is_dir()):
        metadata: Any = workdir.read_json(folder / store.METADATA)
        workdir.write_text(folder / "README.md", text(folder, metadata))


if __name__ == "__main__":
    _write_shipped()
