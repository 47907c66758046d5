"""Ensembles: the predictions of finished runs, averaged. A record of one is a record like others.

Members are named by their folders or records, and known in the record by the content of what they
predict. Nothing is computed but averages of the probabilities that their records hold (float16).
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import metrics, tta
from fer_jax.config import Config
from fer_jax.data.dataset import Dataset
from fer_jax.errors import RecordError
from fer_jax.labels import SPLITS
from fer_jax.runs import record, workdir

log = logging.getLogger("fer_jax")

# The smallest float16 above zero: what a record has rounded to zero is below it.
_LEAST = 2.0**-24


def read_member(path: Path, dataset: Dataset, field: str) -> dict[str, Any]:
    """Reads the record of a finished run.

    Args:
      path: the run's folder, or its record.
      dataset: what it must have been trained on.
      field: that names it, for messages.

    Raises:
      RecordError: if it is no finished run on this data set.
    """
    path = path.expanduser()
    found = workdir.read_json(record_path(path))
    if found is None:
        raise RecordError(f"{field}: {path} holds no finished run; train it first")
    try:
        is_of_these = dataset.is_of(found["dataset"])
        for name in ("experiment", "seed", "config", "predictions", "metrics"):
            found[name]
    except (KeyError, TypeError):
        raise RecordError(f"{field}: {path} is no record of a run") from None
    if not is_of_these:
        sha256 = found["dataset"]["source_sha256"]
        raise RecordError(
            f"{field}: {path} was trained on other data (SHA-256 {sha256[:12]}, here "
            f"{dataset.source_sha256[:12]})"
        )
    return found


def record_path(run: Path) -> Path:
    """Returns where the record is of a run that is named by its folder or its record."""
    return run / "results.json" if run.is_dir() else run


def describe_member(found: dict[str, Any]) -> dict[str, Any]:
    """Names a finished run by content: `sha256` is of its predictions, split by split."""
    digest = hashlib.sha256()
    for split in SPLITS:
        packed = found["predictions"].get(split)
        digest.update(packed["probabilities"].encode() if packed else b"-")
    return {
        "experiment": found["experiment"],
        "seed": found["seed"],
        "sha256": digest.hexdigest(),
    }


def combine(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Averages the members' predictions.

    Args:
      config: `ensemble.members`, `eval.average`, `eval.views` and `eval.open_test` are read.
      dataset: whose splits the members predicted.

    Returns:
      What the record says of the ensemble: `members`, `metrics` and `predictions` of the splits
      that all members predicted, `parameters`, and `views` if all members have those of
      `eval.views`.

    Raises:
      RecordError: if a member is no finished run on this data set, or lacks the views.
    """
    members = [
        read_member(Path(path), dataset, "config.ensemble.members")
        for path in config.ensemble.members
    ]
    splits = [s for s in SPLITS if s != "test" or config.eval.open_test]
    found = {
        "members": [describe_member(member) for member in members],
        "parameters": sum(member["parameters"] for member in members),
        **_average([member["predictions"] for member in members], splits, dataset, config),
    }
    if config.eval.views != "none":
        views = [member.get("views", {}) for member in members]
        for path, view in zip(config.ensemble.members, views, strict=True):
            if view.get("name") != config.eval.views:
                raise RecordError(
                    f"config.ensemble.members: {path} has no predictions from the views "
                    f"{config.eval.views!r}; train it with --config.eval.views={config.eval.views}"
                )
        predictions = [view["predictions"] for view in views]
        found["views"] = {
            "name": config.eval.views,
            **_average(predictions, splits, dataset, config),
        }
    return found


def _average(
    predictions: Sequence[dict[str, Any]], splits: Sequence[str], dataset: Dataset, config: Config
) -> dict[str, Any]:
    """Averages predictions split by split; one that a member lacks is left out."""
    found: dict[str, Any] = {"metrics": {}, "predictions": {}}
    for split in splits:
        if not all(split in packed for packed in predictions):
            continue
        images = dataset.splits[split]
        log_probs = [decode(packed[split], images.labels) for packed in predictions]
        mean = tta.average(log_probs, config.eval.average)
        found["metrics"][split] = metrics.of_split(
            images.labels, images.in_train, mean, dataset.classes
        )
        found["predictions"][split] = record.encode_predictions(dataset, split, np.exp(mean))
    return found


def decode(packed: dict[str, Any], labels: np.ndarray) -> np.ndarray:
    """Returns log-probabilities `[n, classes]` float32 of a record's predictions for a split.

    Raises:
      RecordError: if the record has other labels.
    """
    probabilities = np.maximum(np.asarray(read_probabilities(packed, labels), np.float64), _LEAST)
    return np.log(probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


def read_probabilities(
    packed: dict[str, Any], labels: np.ndarray, whose: str = "predictions"
) -> np.ndarray:
    """Returns probabilities `[n, classes]` float32 as a record holds them for a split.

    Args:
      packed: of the record.
      labels: `[n]`, of the data set's split.
      whose: names the predictions, for messages.

    Raises:
      RecordError: if the record has other labels.
    """
    known, probabilities = record.decode_predictions(packed)
    if not np.array_equal(known, labels):
        raise RecordError(f"{whose} are for other images than this data set's")
    return probabilities
