"""The table of a factor study: a row for each run, read from its records.

Accuracies are top-1. `train`, `valid` and `test` are of the checkpoint that is best on valid;
`train_running` is what the paper prints: the mean over the last epoch while it trains, dropout on.
"""

import contextlib
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd

from fer_jax.errors import RecordError
from fer_jax.runs import record, workdir
from fer_jax.study.effects import Frame, NotSeparable

log = logging.getLogger("fer_jax")

Corner = tuple[str, Any, Any]  # a factor and two of its levels

# Column -> what it is called in text and figures, in the order of both.
ACCURACIES = {
    "train_running/accuracy": "running train",
    "train/accuracy": "train",
    "valid/accuracy": "valid",
    "test/accuracy": "test",
}
RUNNING, TEST = "train_running/accuracy", "test/accuracy"
NAMES = {
    "conv_layers": "convolution layers",
    "dropout": "dropout",
    "batch_size": "batch size (images)",
    "epochs": "epochs",
    "hidden_layers": "hidden fully connected layers",
    "augment": "augmentation",
}


def load(folder: Path) -> Frame:
    """Reads the records of one study into a table.

    Args:
      folder: a study's records, as :mod:`fer_jax.study.plan` keeps them.

    Returns:
      A row for each run, sorted by seed and configuration; empty if there is no record. Columns:
      `run` (the configuration's name), `seed`, one for each factor, accuracies and losses named
      `split/metric`, `epochs_run`, `best_epoch`, `train_s` (seconds of training by the clock),
      `train_cpu_s` (seconds of training summed over cores, which other work on the machine does
      not lengthen), device, data, images of test and how often it was opened, and the optimiser
      and its rate by their fields' whole paths, since a factor may have the short names.

    A record that is damaged is left out, and a line of the log says why.

    Raises:
      RecordError: if the records are of several studies.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            rows.append(_read(path))
        except RecordError as error:
            log.warning("left out: %s", error)
    if not rows:
        return pd.DataFrame()
    if any(set(row) != set(rows[0]) for row in rows):
        raise RecordError(f"{folder} holds records of studies with different factors")
    frame = pd.DataFrame(rows)
    for factor in factors(frame):
        with contextlib.suppress(ValueError):  # named levels stay as they are
            frame[factor] = pd.to_numeric(frame[factor])
    return frame.sort_values(["seed", "run"], ignore_index=True)


def _read(path: Path) -> dict[str, Any]:
    found = record.read(path)
    for place, name in ((found, "levels"), (found["seconds"], "train_cpu")):
        if name not in place:
            raise RecordError(f"{path} is no record of a factor study: {name} is missing")
    last, metrics, train = found["history"][-1], found["metrics"], found["config"]["train"]
    return (
        {"run": found["experiment"].split("/")[-1], "seed": found["seed"]}
        | found["levels"]
        | {name: last[name] for name in ("train_running/accuracy", "train_running/loss")}
        | {
            f"{split}/{name}": metrics[split][name] if split in metrics else math.nan
            for split in ("train", "valid", "test")
            for name in ("accuracy", "loss")
        }
        | {name: found[name] for name in ("epochs_run", "best_epoch")}
        | {f"{name}_s": found["seconds"][name] for name in ("train", "train_cpu")}
        | {
            "platform": found["device"]["platform"],
            "device": found["device"]["kind"],
            "cores": found["device"]["cpu_cores"],
            "data": found["dataset"]["name"],
            "train.optimizer": train["optimizer"],
            "train.learning_rate": train["learning_rate"],
            "test_images": metrics.get("test", {}).get("count", 0),
            "test_evaluations": found["test_evaluations"],
        }
    )


def write_csv(frame: Frame, path: Path) -> None:
    """Writes the table, a line for each run."""
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    workdir.write_text(path, text)


def factors(frame: Frame) -> list[str]:
    """Returns the names of the table's factors."""
    names = list(frame.columns)
    return names[names.index("seed") + 1 : names.index(RUNNING)]


def base_levels(frame: Frame) -> dict[str, Any]:
    """Returns the base's level of each factor.

    Raises:
      NotSeparable: if the base has no run yet.
    """
    rows = frame[frame["run"] == "base"]
    if rows.empty:
        raise NotSeparable("the base has no record yet")
    return {factor: rows.iloc[0][factor] for factor in factors(frame)}


def levels(frame: Frame, factor: str) -> list[Any]:
    """Returns the levels of a factor: numbers by size, names by length after the base's."""
    found = frame[factor].unique().tolist()
    if pd.api.types.is_numeric_dtype(frame[factor]):
        return sorted(found)
    base = base_levels(frame)[factor]
    return sorted(found, key=lambda level: (level != base, len(level), level))


def one_at_a_time(frame: Frame, *free: str) -> Frame:
    """Returns the runs in which all factors but `free` are as in the base."""
    for factor, level in base_levels(frame).items():
        if factor not in free:
            frame = frame[frame[factor] == level]
    return frame


def crossed(frame: Frame) -> list[tuple[Corner, Corner]]:
    """Lists the pairs of factors that were varied together.

    Returns:
      ((factor, low, high), (factor, low, high)) for each pair of which four corners were run, the
      corners that lie furthest apart.
    """
    found = []
    for a, b in itertools.combinations(factors(frame), 2):
        met = set(zip(frame[a], frame[b], strict=True))
        corners = [
            (of_a, of_b)
            for of_a in itertools.combinations(enumerate(levels(frame, a)), 2)
            for of_b in itertools.combinations(enumerate(levels(frame, b)), 2)
            if all((x, y) in met for (_, x), (_, y) in itertools.product(of_a, of_b))
        ]
        if corners:
            widest = max(corners, key=lambda c: sum(high[0] - low[0] for low, high in c))
            (a_low, a_high), (b_low, b_high) = ([level for _, level in ends] for ends in widest)
            found.append(((a, a_low, a_high), (b, b_low, b_high)))
    return found


def time_column(frame: Frame) -> tuple[str, str]:
    """Returns the column that tells how long training took, and its unit."""
    if set(frame["platform"]) == {"cpu"}:
        return "train_cpu_s", "core-seconds"
    return "train_s", "seconds"
