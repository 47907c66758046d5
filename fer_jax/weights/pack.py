"""A finished run -> a folder of weights that others can use: arrays, configuration, card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import ensemble, loop
from fer_jax.config import Config, get_config
from fer_jax.data.dataset import Dataset
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import CheckpointError, TrainingError
from fer_jax.labels import CLASSES
from fer_jax.machine import devices
from fer_jax.predict import make_predict
from fer_jax.runs import checkpoint, record, workdir
from fer_jax.weights import card, store

# What a folder of weights keeps of the run's record; the whole one is in the repository.
_KEPT = ("experiment", "seed", "config", "dataset", "versions", "device", "git", "parameters")
_KEPT += ("epochs_run", "best_epoch", "test_evaluations", "metrics", "seconds")
# Another machine's rounding moves probabilities by thousandths (see `fer_jax.predict`), and gives
# another class only where the first two are nearly equal. A network of another epoch, which may
# differ in a few images alone, also decides others otherwise.
_CLEAR = 0.01  # by more than this the first probability exceeds the second
_SHARE = 0.001  # of valid's images, clear ones, that coarser rounding (bfloat16) may move


def pack(run: Path, out: Path) -> dict[str, Any]:
    """Writes a finished run's best checkpoint as weights, with a card.

    Kernels become float16, the largest first, as long as every image of valid and test keeps its
    class.

    Args:
      run: the run's folder, with its record.
      out: the folder to write; its name is the weights'.

    Returns:
      The metadata that `fer_jax.weights.store.save` wrote.

    Raises:
      TrainingError: if the run is not finished, never opened test, or is an ensemble.
      RecordError: if its record is damaged, or of other images than are prepared here.
      CheckpointError: if its best checkpoint is damaged, or classifies valid otherwise than the
        record says.
      DataError: if the data set, which is needed for the comparison, cannot be read.
      WorkdirError: if the folder cannot be written.
    """
    found = _read(run)
    config = _config(found)
    classes = tuple(found["dataset"].get("classes") or CLASSES)
    variables = checkpoint.load_variables(run, found["best_step"])
    dataset = load_dataset(config.data)
    classify = _make_classify(config, dataset, len(classes))
    predicted = classify(variables)
    _check_same(run, found, dataset, predicted["valid"])
    half = _halvable(variables, classify, predicted)
    about = {name: found[name] for name in _KEPT if name in found}
    about["calibration"] = card.calibration(found)
    if "views" in found:
        about["views"] = {name: found["views"][name] for name in ("name", "metrics")}
    data, metadata = store.encode(out, variables, config.model, classes, about, half)
    text = card.text(out, metadata)
    store.write(out, data, metadata)
    workdir.write_json(out / "config.json", found["config"])
    workdir.write_text(out / "README.md", text)
    return metadata


def _read(run: Path) -> dict[str, Any]:
    """Returns the record of a run that can be packed."""
    path = run / "results.json"
    if not path.exists():
        raise TrainingError(f"{run} holds no record (results.json); train it to the end first")
    found = record.read(path)
    if "members" in found:
        raise TrainingError(f"{run} is an ensemble and has no weights of its own; pack its members")
    if "test" not in found["metrics"]:
        raise TrainingError(
            f"{run} never opened test, on which a card says how good weights are; train it with "
            "--config.eval.open_test=True"
        )
    return found


def _config(found: dict[str, Any]) -> Config:
    config: Any = get_config()
    config.model.update(found["config"]["model"])
    config.data.update(found["config"]["data"])
    return config


def _make_classify(
    config: Config, dataset: Dataset, classes: int
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Returns a function from variables to the classes `[n]` of valid's and test's images."""
    model, mesh = loop.create_network(config, classes)
    predict = make_predict(model, mesh, config.eval.batch_size)

    def classify(variables: Any) -> dict[str, np.ndarray]:
        placed = devices.put(variables, devices.replicated(mesh))
        return {
            split: predict(placed, dataset.splits[split].images).argmax(axis=1)
            for split in ("valid", "test")
        }

    return classify


def _halvable(
    variables: Any, classify: Callable[[Any], dict[str, np.ndarray]], predicted: dict[str, Any]
) -> list[str]:
    """Returns the kernels that may together be stored as float16 without moving a prediction."""
    half: list[str] = []
    for name in store.kernels(variables):
        classes = classify(store.as_stored(variables, [*half, name]))
        if all(np.array_equal(classes[split], predicted[split]) for split in predicted):
            half.append(name)
    return half


def _check_same(run: Path, found: dict[str, Any], dataset: Dataset, classes: np.ndarray) -> None:
    """Raises if these are not the classes that a record's network gives valid's images."""
    packed, labels = found["predictions"]["valid"], dataset.splits["valid"].labels
    recorded = ensemble.read_probabilities(packed, labels, f"the predictions in {run}'s record")
    second, first = np.sort(recorded, axis=1)[:, -2:].T
    clear = first - second > _CLEAR
    differ = int((classes != recorded.argmax(axis=1))[clear].sum())
    if differ > _SHARE * len(labels):
        raise CheckpointError(
            f"{run}: its best checkpoint is not the one of its record: it gives {differ} of "
            f"{clear.sum()} images of valid, clear ones, another class; train it again in a new "
            "folder"
        )
