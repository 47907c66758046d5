"""Records: what a run was and gave, as JSON that anyone may commit."""

import base64
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import seal
from fer_jax.config import OTHER_RUNS, Config, without_folders
from fer_jax.data.dataset import Dataset
from fer_jax.errors import RecordError, WorkdirError
from fer_jax.runs import plots, workdir

FORMAT = 1

# What a record says of each split -> how a table's heading goes on after the split's name. "Copies"
# are images of another split whose pixels also stand in train.
METRICS = {
    "accuracy": "",
    "accuracy_unique": "without copies",
    "one_vs_rest_accuracy": "equation (3)",
    "macro_f1": "macro-F1",
    "loss": "loss (nats)",
}


def environment() -> dict[str, Any]:
    """Returns versions, device, commit, and what convolutions run in; names nobody."""
    from fer_jax.machine import environment as environment_lib  # reading a record needs no JAX
    from fer_jax.ops import native

    return environment_lib.describe() | {"convolutions": native.convolutions()}


def device_name(device: Mapping[str, Any]) -> str:
    """Returns what a record ran on, such as `AMD EPYC, 2 cores` or `2 x NVIDIA H200`.

    Args:
      device: the record's `device`.
    """
    if device["platform"] == "cpu":
        cores = device["cpu_cores"]
        return f"{device['kind']}, {cores} core{'s' * (cores > 1)}"
    return device["kind"] if device["count"] == 1 else f"{device['count']} x {device['kind']}"


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Returns name, kind, hashes of source and content, class names and images per split."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "source_sha256": dataset.source_sha256,
        "content": dataset.content,
        "classes": list(dataset.classes),
        "count": {name: len(split.labels) for name, split in dataset.splits.items()},
    }


def format_metrics(metrics: dict[str, Any]) -> str:
    """Returns a record's metrics, split by split, as a table for a terminal."""
    headings = {name: heading or name for name, heading in METRICS.items()}
    lines = [f"{'split':8}{'images':>8}" + "".join(f"  {h:>8}" for h in headings.values())]
    for split, found in metrics.items():
        cells = [
            f"{'-' if found[name] is None else f'{found[name]:.4f}':>{max(len(heading), 8)}}"
            for name, heading in headings.items()
        ]
        lines.append("  ".join([f"{split:8}{found['count']:>8}", *cells]))
    return "\n".join(lines)


def describe_config(config: Config) -> dict[str, Any]:
    """Returns the configuration without folders, which say nothing to others."""
    plain = config.to_dict()
    for section, field in (path.split(".") for path in OTHER_RUNS):
        plain[section][field] = without_folders(plain[section][field])
    for field in ("source", "data_dir"):
        plain["data"].pop(field)
    return plain


def encode_predictions(dataset: Dataset, split: str, probabilities: np.ndarray) -> dict[str, Any]:
    """Packs a split's predictions for a record.

    Args:
      dataset: whose split it is.
      split: its name.
      probabilities: `[count, classes]` float32, in the split's order.

    Returns:
      `labels`, a string with a character for each image, from "0" on (digits, with ten classes or
      fewer); `probabilities`, base64 of `[count, classes]` little-endian float16.
    """
    return {
        "labels": "".join(chr(ord("0") + label) for label in dataset.splits[split].labels),
        "probabilities": base64.b64encode(probabilities.astype("<f2").tobytes()).decode(),
    }


def decode_predictions(packed: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks :func:`encode_predictions`: labels `[n]` int32, probabilities
    `[n, classes]` float32."""
    codes = np.frombuffer(packed["labels"].encode("utf-32-le"), "<u4")
    labels = codes.astype(np.int32) - ord("0")
    flat = np.frombuffer(base64.b64decode(packed["probabilities"]), "<f2").astype(np.float32)
    return labels, flat.reshape(len(labels), -1)


def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Returns what a record says before anything is known of its run's results."""
    return {
        "format": FORMAT,
        "experiment": config.experiment,
        "seed": config.seed,
        "config": describe_config(config),
        "dataset": describe_dataset(dataset),
        **environment(),
    }


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes a run's record, and draws its pictures, into its folder.

    Raises:
      WorkdirError: if that is not possible.
    """
    try:
        if results["history"]:
            plots.learning_curves(results["history"], folder / "learning_curves.png")
        for split in [name for name in ("valid", "test") if name in results["metrics"]]:
            plots.confusion_matrix(
                results["metrics"][split]["confusion"],
                results["dataset"]["classes"],
                f"{results['experiment']}, {split}",
                folder / f"confusion_{split}.png",
            )
        workdir.write_json(folder / "results.json", results)
    except WorkdirError as error:
        raise WorkdirError(
            f"{error}. All epochs are kept: the same command then only writes the record"
        ) from error


# What every record has, older ones too: path of the field -> its type.
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("experiment", "dataset.name", "device.platform", "device.kind"), str),
    **dict.fromkeys(("seed", "test_evaluations", "device.count", "device.cpu_cores"), int),
    **dict.fromkeys(("config.data", "config.model", "config.train"), dict),
    **dict.fromkeys(("dataset.count", "metrics.valid"), dict),
}
_TRAINED: dict[str, type] = {  # an ensemble's record, which has `members`, lacks these
    **dict.fromkeys(("epochs_run", "best_epoch", "config.train.epochs"), int),
    "history": list,
    "seconds.train": float,
}
_METRICS: dict[str, type] = {"count": int, "accuracy": float, "loss": float}
_EPOCH: dict[str, type] = {
    "epoch": int,
    **{f"{s}/{name}": float for s in ("train_running", "valid") for name in ("accuracy", "loss")},
}


def read(path: Path) -> dict[str, Any]:
    """Reads a record and checks that it is one of a whole run.

    Raises:
      RecordError: naming the file and the field, if it cannot be read, a field is missing or of
        another type, epochs are missing, or predictions are damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _check(found)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path} is no record of a whole run: {error}") from error
    return found


def _check(found: Any) -> None:
    if seal.is_broken(found):
        raise ValueError("it is not what was written: it was damaged or changed")
    _check_fields(found, _FIELDS)
    for split, metrics in found["metrics"].items():
        _check_fields(metrics, _METRICS, f"metrics.{split}.")
    if "members" not in found:
        _check_fields(found, _TRAINED)
        if len(found["history"]) != found["epochs_run"]:
            raise ValueError(f"history has {len(found['history'])} of {found['epochs_run']} epochs")
        for i, row in enumerate(found["history"]):
            _check_type(f"history[{i}]", row, dict)
            for name, kind in _EPOCH.items():
                _check_type(f"history[{i}].{name}", row.get(name), kind)
    for split, packed in found.get("predictions", {}).items():
        count = found["metrics"].get(split, {}).get("count")
        _check_predictions(split, packed, count)


def _check_fields(found: Any, fields: dict[str, type], prefix: str = "") -> None:
    for name, kind in fields.items():
        _check_type(prefix + name, functools.reduce(_field, name.split("."), found), kind)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _check_type(name: str, value: Any, kind: type) -> None:
    if value is None:
        raise ValueError(f"{name} is missing")
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name} is {value!r}, no {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}")


def _check_predictions(split: str, packed: Any, count: int | None) -> None:
    try:
        labels, probabilities = decode_predictions(packed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"predictions.{split} cannot be unpacked ({error!r})") from None
    if len(labels) != count:
        raise ValueError(f"predictions.{split} has {len(labels)} of {count} images")
    classes = probabilities.shape[1]
    if not (probabilities >= 0).all() or labels.max() >= classes:
        raise ValueError(f"predictions.{split} has values that are no probabilities or labels")
