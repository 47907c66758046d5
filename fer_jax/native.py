"""Convolution for XLA's CPU backend in C++ (`native.cc`), compiled on the machine that runs it.

XLA calls it through its foreign function interface (`jax.ffi`). The compiled library is kept beside
JAX's compilation cache. Without a C++ compiler everything still works, in XLA alone and slower;
`docs/performance.md` says by how much.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

log = logging.getLogger("fer_jax")

SOURCE = Path(__file__).with_name("native.cc")
FEATURES = 16  # output channels come in multiples of this: a vector of AVX-512
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-w", "-shared", "-fPIC")
_TARGETS = ("fer_jax_convolution", "fer_jax_kernel_gradient")


class NativeError(RuntimeError):
    """The library cannot be built or loaded here."""


def cache_folder() -> Path:
    """Returns where compiled programs are kept: `$FER_JAX_CACHE` or `~/.cache/fer_jax`."""
    return Path(os.environ.get("FER_JAX_CACHE") or Path.home() / ".cache" / "fer_jax")


@functools.cache
def available() -> bool:
    """Returns whether convolutions on the CPU run in the library, which is built if need be.

    It is not used on an accelerator, nor with `FER_JAX_NATIVE=0` in the environment.
    """
    if os.environ.get("FER_JAX_NATIVE") == "0" or jax.default_backend() != "cpu":
        return False
    try:
        library = ctypes.CDLL(str(build(cache_folder())))
    except (NativeError, OSError) as error:
        log.warning("Convolutions run in XLA alone, at about half the speed: %s", error)
        return False
    for name in _TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True


def convolutions() -> str:
    """Returns what runs the CPU's convolutions, `native` or `xla`; they differ in rounding."""
    return "native" if available() else "xla"


def build(folder: Path) -> Path:
    """Compiles the library for this processor, unless `folder` has it.

    Args:
      folder: where it is kept; several processes may build at once.

    Returns:
      The library's path. Source, flags, compiler, JAX and processor are part of its name.

    Raises:
      NativeError: without a compiler, if compilation fails, or if `folder` cannot be written.
    """
    names = ([os.environ["CXX"]] if "CXX" in os.environ else []) + ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise NativeError(f"no C++ compiler ({', '.join(names)}) on the PATH")
    version = _output([compiler, "--version"])
    told = (SOURCE.read_text(), *_FLAGS, compiler, version, jax.__version__, _processor())
    path = folder / f"native_{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / path.name
                _output([compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", made])
                made.replace(path)
        except OSError as error:
            raise NativeError(f"cannot write in {folder}: {error.strerror}") from error
    return path


def _output(command: list) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or [error.stderr]
        raise NativeError(f"{command[0]} fails: {lines[0].strip()}") from error


def _processor() -> str:
    """Returns what tells processors apart that `-march=native` tells apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Convolves on a CPU; only where :func:`available`.

    Args:
      images: `[batch, height, width, channels]` float32.
      kernel: `[height, width, channels, features]` float32, features a multiple of `FEATURES`.
      strides: two ints.
      padding: two (low, high) pairs, none negative.

    Returns:
      `[batch, out_height, out_width, features]` float32.
    """
    sides = [
        (size + low + high - length) // stride + 1
        for size, length, stride, (low, high) in zip(
            images.shape[1:3], kernel.shape[:2], strides, padding, strict=True
        )
    ]
    shape = (images.shape[0], *sides, kernel.shape[3])
    return _call("fer_jax_convolution", shape, images, kernel, strides, padding)


def kernel_gradient(
    images: jax.Array,
    grad: jax.Array,
    kernel_shape: tuple[int, int, int, int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Returns the gradient of :func:`convolution` by its kernel; same conditions.

    Args:
      images: `[batch, height, width, channels]` float32.
      grad: `[batch, out_height, out_width, features]` float32.
      kernel_shape: of the kernel.
      strides: two ints.
      padding: two (low, high) pairs, none negative.

    Returns:
      `kernel_shape` float32. Summed in a fixed order for a given number of cores and devices.
    """
    return _call("fer_jax_kernel_gradient", kernel_shape, images, grad, strides, padding)


def _call(name, shape, first, second, strides, padding):
    call = jax.ffi.ffi_call(
        name, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    found = call(
        first,
        second,
        strides=np.asarray(strides, np.int64),
        padding=np.asarray(padding, np.int64).ravel(),
        tasks=np.int64(_tasks()),
    )
    return vary_like(vary_like(found, first), second)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Marks `x` as different on each device of every mesh axis that `like` differs over."""
    axes = tuple(jax.typeof(like).mat.varying - jax.typeof(x).mat.varying)
    return lax.pcast(x, axes, to="varying") if axes else x


def _tasks() -> int:
    """Returns how many tasks share a call: the cores that each virtual device has for itself."""
    return max(1, jax.local_device_count() // max(1, jax.sharding.get_abstract_mesh().size))
