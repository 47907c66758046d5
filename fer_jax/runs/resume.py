"""What a run's folder holds already, and whether a run may go on there."""

import logging
from pathlib import Path
from typing import Any

from fer_jax.config import Config, changed_fields, depends_on_length, format_changes
from fer_jax.data.dataset import Dataset
from fer_jax.errors import TrainingError, WorkdirError
from fer_jax.runs import checkpoint
from fer_jax.runs import workdir as wd

log = logging.getLogger("fer_jax")

SCORE = "valid/accuracy"  # what selects the best checkpoint


def _refuse_changes(config: Config, before: dict[str, Any], workdir: Path) -> None:
    """Refuses fields that keep a run from going on; it may go on longer where that is the same."""
    changes = changed_fields(config, before, length=depends_on_length(config))
    if changes:
        raise TrainingError(
            f"{workdir} holds a run with another configuration ({format_changes(changes)}). Use "
            "the same configuration to go on, or --workdir=PATH for a new run"
        )


def is_out_of_patience(patience: int, history: list[dict[str, Any]]) -> bool:
    """Returns whether the last `patience` epochs brought no better score; 0 never ends a run."""
    if not patience or not history:
        return False
    best = max(history, key=lambda row: row[SCORE])  # the earliest of equals
    return history[-1]["epoch"] - best["epoch"] >= patience


def refuse_shorter(config: Config, history: list[dict[str, Any]], workdir: Path) -> None:
    """Raises a TrainingError if a run of this length would have ended before this one did."""
    if config.train.epochs < len(history):
        raise TrainingError(
            f"{workdir} holds a run of {len(history)} epochs, but config.train.epochs is "
            f"{config.train.epochs}. Ask for {len(history)} or more to go on, or give a shorter "
            "run a folder of its own with --workdir=PATH"
        )
    patience = config.train.patience
    for epochs in range(1, len(history)):
        if is_out_of_patience(patience, history[:epochs]):
            raise TrainingError(
                f"{workdir} holds a run of {len(history)} epochs, but with config.train.patience "
                f"{patience} it would have ended after {epochs}. Ask for more patience to go on, "
                "or give this run a folder of its own with --workdir=PATH"
            )


def finished(config: Config, workdir: Path, dataset: Dataset) -> dict[str, Any] | None:
    """Returns the record of a complete run with this configuration and data, if there is one."""
    path = workdir / "results.json"
    found = wd.read_json(path)
    if found is None:
        return None
    try:
        before, history, _ = found["config"], found["history"], found["metrics"]
        is_of_these = dataset.is_of(found["dataset"])
    except (KeyError, TypeError):
        raise WorkdirError(f"{path} is not a run's record; move it away to go on") from None
    _refuse_changes(config, before, workdir)
    if not is_of_these:
        raise _other_data(found["dataset"]["source_sha256"], dataset, workdir)
    if not changed_fields(config, before):
        return found
    refuse_shorter(config, history, workdir)
    return None


def _other_data(before: str, dataset: Dataset, workdir: Path) -> TrainingError:
    return TrainingError(
        f"{workdir} holds a run on other data (SHA-256 {before[:12]} -> "
        f"{dataset.source_sha256[:12]}). Give the same data to go on, or --workdir=PATH for a new "
        "run"
    )


def read_before(config: Config, workdir: Path, dataset: Dataset) -> dict[str, Any] | None:
    """Returns what the run so far knows, if it can go on with this configuration and data."""
    before = checkpoint.read_progress(workdir)
    if before is None:
        return None
    _refuse_changes(config, before["config"], workdir)
    if not dataset.is_of(before):
        raise _other_data(before["source_sha256"], dataset, workdir)
    return before


def best_row(history: list[dict[str, Any]], workdir: Path) -> dict[str, Any]:
    """Returns the row with the best valid accuracy, the earliest of equals, of those kept."""
    there = set(checkpoint.steps_in(workdir))
    rows = [row for row in history if row["step"] in there]
    if not rows:
        raise TrainingError(f"no epoch has been completed in {workdir}; train first")
    best, of_all = (max(found, key=lambda row: row[SCORE]) for found in (rows, history))
    if best is not of_all:
        log.warning(
            "The checkpoint of the best epoch, %d (%s %.4f), is not in %s; the best of those "
            "there is epoch %d (%.4f)",
            *(of_all["epoch"], SCORE, of_all[SCORE], workdir / "checkpoints"),
            *(best["epoch"], best[SCORE]),
        )
    return best
