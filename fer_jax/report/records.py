"""Reads the records of runs, leaves out those that no table may use, and words what they say."""

import logging
import runpy
import statistics
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config, changed_fields
from fer_jax.errors import RecordError
from fer_jax.runs import record
from fer_jax.study.plan import ROOT, RUNS

log = logging.getLogger("fer_jax")

NOT_MEASURED = "not measured yet"
MISSING = "-"

type Record = dict[str, Any]  # what `results.json` of a run holds
type Runs = dict[str, list[Record]]  # experiment -> its records, CPU first, then by seed


def load_runs(folder: Path = RUNS) -> Runs:
    """Returns experiment -> its records, from all JSON files in a folder and below it.

    A record that no table may use is left out, and a line of the log says why: it is damaged, it
    is of other images than FER2013's, its run opened test more than once, or it does not belong in
    one row with the others of its experiment.
    """
    runs: Runs = defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        try:
            found = read(path)
            for other in runs.get(found["experiment"], []):
                _check_same_row(path, found, other)
        except RecordError as error:
            log.warning("left out: %s", error)
        else:
            runs[found["experiment"]].append(found)
    return {name: sorted(found, key=_order) for name, found in sorted(runs.items())}


def read(path: Path) -> Record:
    """Reads a record that a table may use.

    Raises:
      RecordError: naming the file and the field, if it is not of a whole run on FER2013 that opened
        test once.
    """
    found = record.read(path)
    dataset = found["dataset"]["name"]
    if dataset != "fer2013":
        raise RecordError(f"{path} is of a run on {dataset}, not fer2013")
    if found["config"]["data"].get("partial"):
        raise RecordError(f"{path} is of a run on a part of the data set")
    if found["test_evaluations"] != 1:
        raise RecordError(f"{path}: test was opened {found['test_evaluations']} times, not once")
    for name, of in (("metrics", ("train", "test")), ("predictions", ("test",))):
        for split in of:
            if split not in found.get(name, {}):
                raise RecordError(f"{path}: {name}.{split} is missing")
    return found


def _order(found: Record) -> tuple[bool, str, int]:
    return found["device"]["platform"] != "cpu", _row_of(found), found["seed"]


def _row_of(found: Record) -> str:
    """Names the row a record belongs in: CPUs of all kinds share one."""
    return "cpu" if found["device"]["platform"] == "cpu" else _device_name(found)


def _check_same_row(path: Path, found: Record, other: Record) -> None:
    if _row_of(found) != _row_of(other):
        return
    if found["seed"] == other["seed"]:
        raise RecordError(f"{path}: a second record of seed {found['seed']} on a like device")
    changes = changed_fields(found["config"], other["config"])
    changes.pop("seed", None)
    for name, (theirs, ours) in changes.items():
        raise RecordError(
            f"{path}: {name} is {ours}, but {theirs} in seed {other['seed']}; "
            "runs of one row differ in nothing but their seed"
        )


def by_device(found: list[Record]) -> list[list[Record]]:
    """Splits an experiment's records into rows, all CPUs in the first, then each other device.

    Runs that did not go to the end count only where no other did.
    """
    rows: dict[str, list[Record]] = defaultdict(list)
    for one in list(filter(is_complete, found)) or found:
        rows[_row_of(one)].append(one)
    return list(rows.values())


def main_row(found: list[Record]) -> list[Record]:
    """Returns the records on the device with most seeds, on the CPU among equals."""
    return max(by_device(found), key=len, default=[])


def devices(row: list[Record]) -> str:
    """Returns what a row's runs ran on, such as `AMD EPYC, 2 cores` or `NVIDIA H200`."""
    return "; ".join(dict.fromkeys(map(_device_name, row)))


def _device_name(found: Record) -> str:
    return record.device_name(found["device"])


def heading(split: str, metric: str) -> str:
    """Returns how a table names a metric of a split, such as `test macro-F1`."""
    return f"{split} {record.METRICS[metric]}".strip()


def spread(values: list[float]) -> str:
    """Formats a mean, with the standard deviation over seeds where there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def over_seeds(row: list[Record], split: str, metric: str) -> str:
    """Returns :func:`spread` of a metric over a row, `MISSING` if one of its records lacks it."""
    values = [found["metrics"][split].get(metric) for found in row]
    return MISSING if None in values else spread(values)


def over_views(row: list[Record], split: str, metric: str) -> str:
    """Returns :func:`over_seeds` of a metric of the mean over views of each image."""
    averaged = [found.get("views", {}).get("metrics", {}).get(split) for found in row]
    return MISSING if None in averaged else spread([found[metric] for found in averaged])


def best_epochs(row: list[Record]) -> str:
    """Returns the epoch that each run kept, of how many; `MISSING` for an ensemble."""
    if any("members" in found for found in row):
        return MISSING
    return ", ".join(f"{found['best_epoch']} of {found['epochs_run']}" for found in row)


def training_time(row: list[Record]) -> str:
    """Returns the mean time of training: core minutes on a CPU if all records have them.

    Wall time also counts what else ran there, on a GPU too, where it is all there is; core minutes
    are the run's own. `MISSING` for an ensemble.
    """
    if any("members" in found for found in row):
        return MISSING
    minutes = core_minutes(row)
    if minutes is not None:
        return f"{minutes:,.1f} core-min"
    minutes = statistics.fmean(found["seconds"]["train"] for found in row) / 60
    on = "" if row[0]["device"]["platform"] == "cpu" else row[0]["device"]["platform"].upper() + "-"
    return f"{minutes:,.1f} {on}min"


def core_minutes(row: list[Record]) -> float | None:
    """Returns the mean core minutes of training; None if a run was not on a CPU or lacks them."""
    seconds = [found.get("seconds", {}).get("train_cpu") for found in row]
    if row[0]["device"]["platform"] != "cpu" or None in seconds:
        return None
    return statistics.fmean(seconds) / 60


@cache
def experiment_config(experiment: str) -> Config | None:
    """Returns the configuration of a file in `experiments/`, None if there is no such file."""
    path = ROOT / "experiments" / f"{experiment}.py"
    return runpy.run_path(str(path))["get_config"]() if path.exists() else None


def ending(found: Record) -> str:
    """Says how far a run went.

    It went to the end if valid had not improved for `patience` epochs, or if it made all epochs
    that its experiment file asks for. Published weights were trained elsewhere.
    """
    if "chosen_on" in found:
        return f"elsewhere; chosen on {found['chosen_on']}"
    if "members" in found:
        return f"to the end: an ensemble of {len(found['members'])} runs"
    run, patience = found["epochs_run"], found["config"]["train"].get("patience", 0)
    planned = planned_epochs(found)
    best = max(found["history"], key=lambda row: row["valid/accuracy"])["epoch"]
    if patience and run - best >= patience:
        return f"to the end: valid no better for {patience} epochs"
    if run >= planned:
        return f"to the end: all {planned} epochs"
    return f"stopped early by budget, of {planned} epochs"


def planned_epochs(found: Record) -> int:
    """Returns the epochs that the run's experiment file, or else its configuration, asks for."""
    config = experiment_config(found["experiment"])
    return found["config"]["train"]["epochs"] if config is None else config.train.epochs


def is_complete(found: Record) -> bool:
    """Says whether a run went to the end; see :func:`ending`."""
    return ending(found).startswith("to the end")


def predictions(found: Record, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Returns labels `[n]` int32 and probabilities `[n, 7]` float32 of a split."""
    return record.decode_predictions(found["predictions"][split])


def is_right(found: Record, split: str = "test") -> np.ndarray:
    """Returns `[n]` bool: whether each image's likeliest class is the true one."""
    labels, probabilities = predictions(found, split)
    return probabilities.argmax(axis=1) == labels
