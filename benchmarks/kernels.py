"""Measures what smaller kernels cost in accuracy, in ONNX Runtime on valid and test.

    uv run python benchmarks/kernels.py --weights=compact

Writes `results/kernels.json`: of float32, float16 and int8 kernels bytes, accuracies, and the share
of images that keep their class. Nothing is chosen by test: scales follow from the kernels alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from absl import app, flags

from fer_jax.apps import onnx
from fer_jax.apps.load import load_network
from fer_jax.config import get_config
from fer_jax.data.prepare import load_dataset
from fer_jax.machine import environment
from fer_jax.report import markdown
from fer_jax.runs import workdir

_WEIGHTS = flags.DEFINE_string("weights", None, "as `fer-jax export` takes them")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(Path(__file__).resolve().parent.parent / "results" / "kernels.json"),
    "where the record goes",
)
_BATCH = 256
SPLITS = ("valid", "test")
KEYS = ("accuracy", "same_class")


def main(_: list[str]) -> None:
    """Measures both files and writes the record."""
    network = load_network(_WEIGHTS.value)
    splits = load_dataset(get_config().data).splits
    record: dict[str, Any] = {"weights": network.name, "sha256": network.metadata["sha256"]}
    classes: dict[str, dict[str, np.ndarray]] = {}
    for kernels in onnx.KERNELS:
        data = onnx.export(network.model, network.variables, network.metadata, kernels)
        session = onnxruntime.InferenceSession(data)
        found = {name: _predict(session, splits[name].images[..., 0]) for name in SPLITS}
        classes[kernels] = found
        record[kernels] = {"bytes": len(data)}
        for name in SPLITS:
            record[kernels][name] = {
                "accuracy": float(np.mean(found[name] == splits[name].labels)),
                "same_class": float(np.mean(found[name] == classes["float32"][name])),
            }
    rows = [
        [kernels, f"{record[kernels]['bytes']:,}"]
        + [f"{record[kernels][name][key]:.4f}" for name in SPLITS for key in KEYS]
        for kernels in onnx.KERNELS
    ]
    heads = [f"{key.replace('_', ' ')}, {name}" for name in SPLITS for key in KEYS]
    print(markdown.table(("Kernels", "Bytes", *heads), rows))
    workdir.write_json(Path(_OUTPUT.value), record | {"environment": environment.describe()})


def _predict(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), _BATCH)
    batches = [np.asarray(images[start : start + _BATCH]) for start in starts]
    outputs = [session.run(["logits"], {"images": batch})[0] for batch in batches]
    return np.concatenate([np.asarray(output) for output in outputs]).argmax(axis=1)


if __name__ == "__main__":
    app.run(main)
