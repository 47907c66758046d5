"""Which devices a run uses, and how arrays are laid out on them."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fer_jax.errors import ConfigError
from fer_jax.machine import environment, memory

log = logging.getLogger("fer_jax")

BATCH_AXIS = "batch"  # name of the mesh axis that a batch is sharded over

MIN_IMAGES_PER_CPU_DEVICE = 16  # with 8 on each of two, Architecture 02 ran 0.9 times as fast
# Each device updates parameters of its own, which on a CPU lie in one memory. Two were 1.1 times as
# fast as one with the 20.8 million of Xception, but 0.84 times with AlexNet's 23.3 million, 0.83
# with ResNet-50's 23.5 and 0.70 with the 56.9 of Gudi's network.
MAX_PARAMETERS_OF_SEVERAL_CPU_DEVICES = 22_000_000


# How JAX takes a GPU's memory; https://docs.jax.dev/en/latest/gpu_memory_allocation.html.
_GPU_MEMORY = (
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)


def setup() -> None:
    """Prepares JAX: freed memory and compiled programs are kept, one virtual CPU device per core.

    Must run before JAX touches a device. Compiled programs lie in :func:`environment.cache_folder`.
    A GPU's memory is taken as it is needed, unless the environment says otherwise: by default JAX
    takes three quarters of it at once, of which these networks leave most unused and which keeps a
    second run from starting.
    """
    memory.keep_freed_memory()
    if not any(name in os.environ for name in _GPU_MEMORY):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    jax.config.update("jax_num_cpu_devices", environment.cpu_cores())
    if folder := environment.cache_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class _PluginErrors(logging.Filter):
    """Keeps JAX's page-long report of a plugin that does not start, and remembers its reason."""

    reason = ""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "plugin" not in message and "CUDA" not in message:
            return True
        error = record.exc_info[1] if record.exc_info else message
        self.reason = " ".join(str(error).split())
        return False


def _platforms() -> str | None:
    return jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]


def start() -> str:
    """Starts JAX's devices and returns the platform: `cpu`, `gpu` or `tpu`.

    Logs one line where the CUDA extra is installed and there is no GPU for it, and one where there
    is an NVIDIA GPU and no extra.
    """
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    installed = any(map(importlib.util.find_spec, plugins))
    wanted = installed and not _platforms()
    errors, logger = _PluginErrors(), logging.getLogger("jax._src.xla_bridge")
    if wanted:
        logger.addFilter(errors)
    try:
        platform = jax.default_backend()
    finally:
        logger.removeFilter(errors)
    if wanted and platform == "cpu":
        log.warning(
            "JAX's CUDA extra is installed, but no GPU was found%s: going on with the CPU",
            f" ({errors.reason})" if errors.reason else "",
        )
    if platform == "cpu" and not installed and not _platforms() and environment.has_nvidia_gpu():
        log.warning(
            "There is an NVIDIA GPU, but JAX's CUDA extra is not installed: going on with the CPU. "
            "To use it: uv run --extra cuda12 launch.py ..., or pip install 'jax[cuda12]'"
        )
    return platform


def choose_count(
    requested: int, batch_size: int, available: int, platform: str, parameters: int
) -> int:
    """Returns how many devices share a batch.

    Args:
      requested: what the configuration asks for; 0 leaves the choice to this function.
      batch_size: images in the global batch.
      available: devices there are.
      platform: `cpu`, `gpu` or `tpu`.
      parameters: how many the network has.

    Returns:
      The request, or else the largest number of devices that divides the batch and, on CPU, leaves
      each at least `MIN_IMAGES_PER_CPU_DEVICE` images; there one if the network has more than
      `MAX_PARAMETERS_OF_SEVERAL_CPU_DEVICES`.

    Raises:
      ConfigError: if the request exceeds what is there or does not divide the batch.
    """
    if requested > available:
        raise ConfigError(
            f"config.train.devices is {requested}, but there are only {available} ({platform})"
        )
    divisors = [n for n in range(1, available + 1) if batch_size % n == 0]
    if requested:
        if requested not in divisors:
            raise ConfigError(
                f"config.train.batch_size {batch_size} does not divide over {requested} devices; "
                f"numbers of devices here that divide it: {', '.join(map(str, divisors))}; the "
                f"nearest batch sizes that {requested} devices divide: "
                f"{', '.join(map(str, _multiples_near(batch_size, requested)))}"
            )
        return requested
    if platform == "cpu" and parameters > MAX_PARAMETERS_OF_SEVERAL_CPU_DEVICES:
        return 1
    if platform == "cpu":
        divisors = [n for n in divisors if batch_size // n >= MIN_IMAGES_PER_CPU_DEVICE or n == 1]
    return max(divisors)


def _multiples_near(number: int, factor: int) -> list[int]:
    low = number // factor * factor
    return [n for n in (low, low + factor) if n]


def create_mesh(requested: int, batch_size: int, parameters: int = 0) -> Mesh:
    """Returns a one-dimensional mesh over the devices that share a batch.

    See :func:`choose_count` for the choice and what it raises. With several processes, all of
    their devices take part.
    """
    devices = jax.devices()
    if jax.process_count() > 1:
        requested = len(devices)
    return _mesh_of(devices, requested, batch_size, parameters)


def create_local_mesh(batch_size: int) -> Mesh:
    """Returns a mesh over devices of this process alone, for what the others do not do."""
    return _mesh_of(jax.local_devices(), 0, batch_size, 0)


def _mesh_of(devices: Sequence[Any], requested: int, batch_size: int, parameters: int) -> Mesh:
    count = choose_count(requested, batch_size, len(devices), devices[0].platform, parameters)
    return Mesh(np.asarray(devices[:count]), (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """The layout of an array whose first axis is split over the devices."""
    return NamedSharding(mesh, P(BATCH_AXIS))


def put(tree, sharding: NamedSharding):
    """Places host arrays on the devices; every process passes the same global arrays."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]),
        tree,
    )
