"""Trained networks as StableHLO, which runs wherever XLA does, without this project's code."""

import io
import json
import zipfile
from typing import Any

import jax
import jax.extend
from flax import linen as nn
from jax import export as jax_export

from fer_jax.apps import trace

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM, METADATA = "program.bin", "metadata.json"


def export(model: nn.Module, variables: Any, metadata: dict[str, Any]) -> bytes:
    """Writes a trained network as a ZIP archive of `program.bin` and `metadata.json`.

    The program is what `jax.export.deserialize` reads. It takes images `[n, 48, 48]` uint8, grey,
    any number of them, and returns `{"probabilities", "logits"}`, both `[n, classes]` float32;
    scaling and resizing happen inside. It holds XLA's own operations alone and runs on a CPU, an
    NVIDIA or AMD GPU, and a TPU.

    Args:
      model: from `create_model`; whatever its `dtype`, the program computes in float32.
      variables: as `model.apply` takes them.
      metadata: what travels with it, as `fer_jax.weights.store.load` returns it and
        `trace.describe` changes it.

    Returns:
      The archive.

    Raises:
      WeightsError: if weights are not finite.
    """
    images = trace.images_spec()
    logits = jax.extend.core.jaxpr_as_fun(trace.forward(model, variables, images))

    def program(images):
        (result,) = logits(images)
        return {"probabilities": jax.nn.softmax(result), "logits": result}

    exported = jax_export.export(jax.jit(program), platforms=PLATFORMS)(images)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in (
            (PROGRAM, bytes(exported.serialize())),
            (METADATA, json.dumps(trace.describe(metadata), indent=1, sort_keys=True)),
        ):
            file.writestr(zipfile.ZipInfo(name), data)
    return archive.getvalue()
