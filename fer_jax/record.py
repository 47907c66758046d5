"""Records: what a run was and gave, as JSON that anyone may commit."""

import base64
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax import native
from fer_jax.config import Config
from fer_jax.data.arrays import Dataset

FORMAT = 1
_PACKAGES = ("fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, Any]:
    """Returns versions, device and git commit; nothing that names a person or a machine."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": _cpu_name() if device.platform == "cpu" else device.device_kind,
            "count": jax.device_count() if device.platform != "cpu" else 1,
            "cpu_cores": native.cpu_cores(),
        },
        "convolutions": native.convolutions(),
        "git": git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Returns the commit of this code and whether code differs from it; None outside git."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


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
