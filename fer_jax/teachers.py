"""Soft targets: what finished runs say about the training images (Hinton et al. 2015).

A teacher is a finished run: its folder, or a copy of its record. What it says about every training
image stands in its record if it ran with `eval.train_predictions`; otherwise its best checkpoint is
asked. Every run is fitted on train only, so a teacher knows nothing of valid and test.

A teacher with `train.fold` speaks only about the part that it was not fitted on (cross-fitting).
"""

import base64
import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import progressive
from fer_jax.config import Config, fill_defaults, get_config, without_folders
from fer_jax.data import select
from fer_jax.data.dataset import Dataset
from fer_jax.ensemble import describe_member, read_member, read_probabilities, record_path
from fer_jax.errors import RecordError, TrainingError
from fer_jax.machine import devices
from fer_jax.models import create_model
from fer_jax.predict import make_predict
from fer_jax.runs import checkpoint, workdir

log = logging.getLogger("fer_jax")

KEPT = "soft_labels.json"  # in the student's folder
_FIELD = "config.train.teachers"


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """What the teachers say about the training images.

    Attributes:
      probabilities: `[n, classes]` float32, rows sum to one, in the order of the prepared train
        split.
      teachers: for the record: of each its `experiment`, `seed`, `fold` and the `sha256` of its
        predictions on train (little-endian float16).
    """

    probabilities: np.ndarray
    teachers: list[dict[str, Any]]


def soft_labels(config: Config, dataset: Dataset, folder: Path) -> SoftLabels:
    """Asks the teachers once; what they say is kept in the student's folder.

    With several processes the first one calls this, and hands on what it returns.

    Args:
      config: the student's; `train.teachers` is read.
      dataset: with the whole train split.
      folder: the student's.

    Raises:
      RecordError: if a teacher is no finished run on this data set.
      TrainingError: if there is an image that no teacher speaks about, or the run has gone on with
        soft labels of other data or of other teachers of the same names.
    """
    packed = workdir.read_json(folder / KEPT)
    if packed is not None and not _are_of(packed, config, dataset):
        if checkpoint.steps_in(folder):
            raise TrainingError(
                f"{folder / KEPT} holds what other teachers of the same names said, or of other "
                f"data than {dataset.name} here. Give the same to go on, or --workdir=PATH for a "
                "new run"
            )
        packed = None  # nothing was trained with them yet
    if packed is None:
        packed = _ask(config, dataset)
        workdir.write_sealed(folder / KEPT, packed)
    probabilities = _unpack(packed["probabilities"], len(dataset.splits["train"].labels))
    return SoftLabels(probabilities, packed["teachers"])


def _are_of(packed: dict[str, Any], config: Config, dataset: Dataset) -> bool:
    """Returns whether kept soft labels are of this data set and, as far as they are still there,
    of these teachers; of one that was moved away the name must do."""
    names = without_folders(config.train.teachers)
    if not dataset.is_of(packed) or packed["names"] != names:
        return False
    paths = [Path(name).expanduser() for name in config.train.teachers]
    return all(
        describe_member(read_member(path, dataset, _FIELD))["sha256"] == said
        for path, said in zip(paths, packed["said"], strict=True)
        if record_path(path).exists()
    )


def _ask(config: Config, dataset: Dataset) -> dict[str, Any]:
    told, folds, said = [], [], []
    teachers = []
    for path in (Path(name).expanduser() for name in config.train.teachers):
        found = read_member(path, dataset, _FIELD)
        said.append(describe_member(found)["sha256"])
        fold = fill_defaults(found["config"])["train.fold"]
        probabilities = _train_predictions(path, found, dataset)
        told.append(probabilities.astype(np.float64))
        folds.append(fold)
        teachers.append(
            {
                "experiment": found["experiment"],
                "seed": found["seed"],
                "fold": fold,
                "sha256": _sha256(probabilities.astype("<f2").tobytes()),
            }
        )
        log.info("%s speaks about the training images", path)
    mean = combine(told, [_speaks_about(dataset, fold) for fold in folds]).astype("<f4").tobytes()
    return {
        "source_sha256": dataset.source_sha256,
        "content": dataset.content,
        "names": without_folders(config.train.teachers),
        "said": said,
        "teachers": teachers,
        "probabilities": base64.b64encode(mean).decode(),
    }


def _unpack(text: str, count: int) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(text), "<f4")
    return flat.reshape(count, -1).astype(np.float32)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _speaks_about(dataset: Dataset, fold: str | None) -> np.ndarray:
    train = dataset.splits["train"]
    if fold is None:
        return np.ones(len(train.labels), bool)
    index, count = select.parse_fold(fold)
    return select.parts(train, count) == index


def combine(probabilities: Sequence[np.ndarray], where: Sequence[np.ndarray]) -> np.ndarray:
    """Averages what teachers say over those that speak about an image.

    Args:
      probabilities: of each teacher `[n, classes]`.
      where: of each teacher `[n]` bool, the images that it speaks about.

    Returns:
      `[n, classes]` float64, rows sum to one.

    Raises:
      TrainingError: if there is an image that no teacher speaks about.
    """
    counts = np.sum(where, axis=0)
    if not counts.all():
        raise TrainingError(
            f"{_FIELD}: no teacher speaks about {np.sum(counts == 0)} of the "
            f"{len(counts)} training images; a teacher with a train.fold speaks only about the "
            "part that it was not fitted on: name the teachers of all parts"
        )
    total = sum(p * w[:, None] for p, w in zip(probabilities, where, strict=True))
    return total / np.sum(total, axis=1, keepdims=True)


def soften(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the softmax of logits divided by the temperature (Hinton et al. 2015, equation (1)).

    Args:
      probabilities: `[n, classes]` float32: the softmax at temperature 1.
      temperature: above 0; over 1 flattens.

    Returns:
      `[n, classes]` float32, rows sum to one.
    """
    if temperature == 1.0:
        return probabilities
    powers = np.asarray(probabilities, np.float64) ** (1.0 / temperature)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _train_predictions(path: Path, found: dict[str, Any], dataset: Dataset) -> np.ndarray:
    """Returns a teacher's probabilities `[n, classes]` float32 on the whole train split."""
    train = dataset.splits["train"]
    if "train" in found["predictions"]:
        whose = f"{_FIELD}: predictions of {path} for train"
        return read_probabilities(found["predictions"]["train"], train.labels, whose)
    if not path.is_dir():
        raise RecordError(
            f"{_FIELD}: {path} has no predictions on train; name the run's folder, or train with "
            "--config.eval.train_predictions=True"
        )
    config = get_config()
    config.model.update({n: v for n, v in found["config"]["model"].items() if n in config.model})
    model = create_model(config.model, len(dataset.classes))
    variables = progressive.best_variables(path, _FIELD, dataset.classes)
    mesh = devices.create_local_mesh(config.eval.batch_size)
    predict = make_predict(model, mesh, config.eval.batch_size)
    placed = devices.put(variables, devices.replicated(mesh))
    return np.exp(predict(placed, train.images))
