"""Images -> log-probabilities: the one way in which a trained network is asked."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.runs.clock import Clock
from fer_jax.steps import is_scanned, to_float

type Predict = Callable[[Any, np.ndarray | jax.Array], np.ndarray]


def exact_products() -> contextlib.AbstractContextManager[None]:
    """Has what is traced in it multiply float32 as float32.

    By default a GPU rounds factors to TensorFloat-32 (10 bits), which is fine to train with. What a
    network says of an image shall not depend on the machine: on 7,178 images of FER2013 rounding
    moves probabilities by up to 0.004, and the class of one image in a thousand.
    """
    return jax.default_matmul_precision("highest")


def make_predict(
    model: nn.Module, mesh: Mesh, batch_size: int, clock: Clock | None = None
) -> Predict:
    """Builds the function that a network is evaluated with; it compiles when first called.

    Args:
      model: from `create_model`.
      mesh: the devices that share a batch.
      batch_size: images at a time, rounded up to a multiple of the devices. What an image gives
        does not depend on it.
      clock: gets the seconds in its spans `evaluate` and, of each first call, `compile`.

    Returns:
      A function (variables, images `[n, height, width, 1]` uint8) -> log-probabilities
      `[n, classes]` float32 on the host, in the order of the images. Variables are
      `{"params", "batch_stats"}`. On an accelerator more than a batch of images is one program;
      there images that stay the same may be placed beforehand, as `devices.replicated` lays them.
    """
    clock = clock or Clock()
    batch_size = -(-batch_size // mesh.size) * mesh.size

    is_exact = mesh.devices.flat[0].platform == "cpu"

    def device_step(variables: Any, images: jax.Array) -> jax.Array:
        with contextlib.nullcontext() if is_exact else exact_products():
            logits: Any = model.apply(variables, to_float(images), train=False)
        # Gathered, so that every process can read the results of all images.
        return lax.all_gather(jax.nn.log_softmax(logits), BATCH_AXIS, tiled=True)

    specs = {"in_specs": (P(), P(BATCH_AXIS)), "out_specs": P(), "check_vma": False}
    step = jax.jit(jax.shard_map(device_step, mesh=mesh, **specs))

    @jax.jit
    def scan(variables: Any, images: jax.Array) -> jax.Array:
        padding = [(0, -len(images) % batch_size), *[(0, 0)] * (images.ndim - 1)]
        batches = jnp.pad(images, padding).reshape(-1, batch_size, *images.shape[1:])
        outputs = lax.map(lambda batch: step(variables, batch), batches)
        return outputs.reshape(-1, outputs.shape[-1])[: len(images)]

    def batch(variables: Any, images: np.ndarray | jax.Array) -> np.ndarray:
        padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        placed = devices.put(padded, devices.sharded(mesh))
        return np.asarray(step(variables, placed))[: len(images)]

    def everything(variables: Any, images: np.ndarray | jax.Array) -> np.ndarray:
        return np.asarray(scan(variables, devices.put(images, devices.replicated(mesh))))

    compiled = set()  # keys of what has run before

    def predict(variables: Any, images: np.ndarray | jax.Array) -> np.ndarray:
        scanned = is_scanned(mesh) and len(images) > batch_size
        function, size = (everything, len(images)) if scanned else (batch, batch_size)
        outputs = []
        for start in range(0, max(len(images), 1), size):
            key = (size, images.shape[1:])
            with clock.span("evaluate" if key in compiled else "compile"):
                outputs.append(function(variables, images[start : start + size]))
            compiled.add(key)
        return np.concatenate(outputs)

    return predict
