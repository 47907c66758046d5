"""Records: what a run was and gave, as JSON that anyone may commit."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config
from fer_jax.data.dataset import Dataset
from fer_jax.machine import environment as environment_lib
from fer_jax.ops import native

FORMAT = 1


def environment() -> dict[str, Any]:
    """Returns versions, device, commit, and what convolutions run in; names nobody."""
    return environment_lib.describe() | {"convolutions": native.convolutions()}


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Returns name, kind, hash of the source and images per split."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "source_sha256": dataset.source_sha256,
        "count": {name: len(split.labels) for name, split in dataset.splits.items()},
    }


def describe_config(config: Config) -> dict[str, Any]:
    """Returns the configuration without folders, which say nothing to others."""
    plain = config.to_dict()
    if plain["train"]["start_from"]:
        plain["train"]["start_from"] = Path(plain["train"]["start_from"]).name
    for field in ("source", "data_dir"):
        plain["data"].pop(field)
    return plain


def encode_predictions(dataset: Dataset, split: str, probabilities: np.ndarray) -> dict[str, Any]:
    """Packs a split's predictions for a record.

    Args:
      dataset: whose split it is.
      split: its name.
      probabilities: `[count, 7]` float32, in the split's order.

    Returns:
      `labels`, a string of digits; `probabilities`, base64 of `[count, 7]` little-endian float16.
    """
    return {
        "labels": "".join(map(str, dataset.splits[split].labels)),
        "probabilities": base64.b64encode(probabilities.astype("<f2").tobytes()).decode(),
    }


def decode_predictions(packed: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks :func:`encode_predictions`: labels `[n]` int32, probabilities `[n, 7]` float32."""
    labels = np.frombuffer(packed["labels"].encode(), np.uint8).astype(np.int32) - ord("0")
    flat = np.frombuffer(base64.b64decode(packed["probabilities"]), "<f2").astype(np.float32)
    return labels, flat.reshape(len(labels), -1)
