"""A finished run -> a folder of weights that others can use: arrays, configuration, card."""

from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import loop
from fer_jax.config import Config, get_config
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import TrainingError
from fer_jax.labels import CLASSES
from fer_jax.machine import devices
from fer_jax.predict import make_predict
from fer_jax.runs import checkpoint, record, workdir
from fer_jax.weights import card, store

# What a folder of weights keeps of the run's record; the whole one is in the repository.
_KEPT = ("experiment", "seed", "config", "dataset", "versions", "device", "git", "parameters")
_KEPT += ("epochs_run", "best_epoch", "test_evaluations", "metrics", "seconds")


def pack(run: Path, out: Path) -> dict[str, Any]:
    """Writes a finished run's best checkpoint as weights, with a card.

    Kernels become float16 where every image of valid and test keeps its class.

    Args:
      run: the run's folder, with its record.
      out: the folder to write; its name is the weights'.

    Returns:
      The metadata that `fer_jax.weights.store.save` wrote.

    Raises:
      TrainingError: if the run is not finished.
      RecordError: if its record is damaged.
      CheckpointError: if its best checkpoint is damaged, or is not the one of the record.
      DataError: if the data set, which is needed for the comparison, cannot be read.
      WorkdirError: if the folder cannot be written.
    """
    path = run / "results.json"
    if not path.exists():
        raise TrainingError(f"{run} holds no record (results.json); train it to the end first")
    found = record.read(path)
    config = _config(found)
    classes = tuple(found["dataset"].get("classes") or CLASSES)
    variables = checkpoint.load_variables(run, found["best_step"])
    half = _keeps_classes(config, classes, variables)
    about = {name: found[name] for name in _KEPT if name in found}
    about["calibration"] = card.calibration(found)
    if "views" in found:
        about["views"] = {name: found["views"][name] for name in ("name", "metrics")}
    metadata = store.save(out, variables, config.model, classes, about, half)
    workdir.write_json(out / "config.json", found["config"])
    workdir.write_text(out / "README.md", card.text(out.name, metadata))
    return metadata


def _config(found: dict[str, Any]) -> Config:
    config: Any = get_config()
    config.model.update(found["config"]["model"])
    config.data.update(found["config"]["data"])
    return config


def _keeps_classes(config: Config, classes: tuple[str, ...], variables: Any) -> bool:
    dataset = load_dataset(config.data)
    model, mesh = loop.create_network(config, len(classes))
    predict = make_predict(model, mesh, config.eval.batch_size)

    def predicted(values: Any) -> np.ndarray:
        placed = devices.put(values, devices.replicated(mesh))
        splits = [dataset.splits[name].images for name in ("valid", "test")]
        return np.concatenate([predict(placed, images).argmax(axis=1) for images in splits])

    return bool((predicted(variables) == predicted(store.as_stored(variables, half=True))).all())
