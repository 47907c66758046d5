"""Convolution and max-pooling for XLA's CPU backend in C++ (`cpp/`).

It is compiled on the machine that runs it, kept beside JAX's compilation cache, and called through
XLA's foreign function interface (`jax.ffi`). Training with it is 1.6 to 2.7 times as fast as in XLA
alone (results/cpu_peers.json), which still does everything where there is no C++ compiler. It can
go when XLA:CPU's kernel gradients come near the rate of its matrix products (jax-ml/jax#12868 is
about part of that) and when it keeps a convolution, its ReLU and its pooling in cache together.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.machine.environment import cache_folder, cpu_cores

log = logging.getLogger("fer_jax")

SOURCES = Path(__file__).with_name("cpp")
CHANNELS = 16  # output channels come in multiples of this: a vector of AVX-512
_PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
_FLAGS = ("-O3", _PROCESSOR, "-std=c++17", "-w", "-shared", "-fPIC")
_TARGETS = (
    "convolution",
    "kernel_gradient",
    "pooled_convolution",
    "pooled_kernel_gradient",
    "pooled_image_gradient",
    "depthwise",
    "depthwise_kernel_gradient",
)


class NativeError(RuntimeError):
    """The library cannot be built or loaded here."""


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
        log.warning("Convolutions run in XLA alone, at about half of the speed: %s", error)
        return False
    for name in _TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, f"fer_jax_{name}"))
        jax.ffi.register_ffi_target(f"fer_jax_{name}", handler, platform="cpu")
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
    source = [path.read_text() for path in sorted(SOURCES.iterdir())]
    told = (*source, *_FLAGS, compiler, version, jax.__version__, _processor())
    path = folder / f"native_{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        log.info("Compiling convolutions for this processor, once")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / path.name
                include = f"-I{jax.ffi.include_dir()}"
                _output([compiler, *_FLAGS, include, str(SOURCES / "native.cc"), "-o", made])
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


Padding = Sequence[tuple[int, int]]


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    *,
    relu: bool,
) -> jax.Array:
    """Convolves on a CPU; like all that follow, only where :func:`available`.

    Args:
      images: `[batch, height, width, channels]` float32.
      kernel: `[height, width, channels, features]` float32, features a multiple of `CHANNELS`.
      bias: `[features]` float32, added.
      strides: two ints.
      padding: two (low, high) pairs, none negative.
      relu: whether negative results become 0.

    Returns:
      `[batch, out_height, out_width, features]` float32.
    """
    shape = _out_shape(images.shape, kernel.shape[:2], strides, padding, kernel.shape[3])
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = (images, kernel, bias)
    return _call("convolution", out, *arrays, strides=strides, padding=padding, relu=relu)


def kernel_gradient(
    images: jax.Array,
    grad: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: Sequence[int],
    padding: Padding,
) -> jax.Array:
    """Returns the gradient of a convolution by its kernel; same conditions.

    Args:
      images: `[batch, height, width, channels]` float32.
      grad: `[batch, out_height, out_width, features]` float32.
      kernel_shape: of the kernel.
      strides: two ints.
      padding: two (low, high) pairs, none negative.

    Returns:
      `kernel_shape` float32. Summed in a fixed order for a given number of cores and devices.
    """
    out = jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    return _call("kernel_gradient", out, images, grad, strides=strides, padding=padding)


class Pool(NamedTuple):
    """Max-pooling without padding."""

    window: tuple[int, int]  # height, width; at most 127 elements
    strides: tuple[int, int]


def pooled_convolution(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    padding: Padding,
    pool: Pool,
    *,
    with_places: bool,
) -> list[jax.Array]:
    """Convolution with strides of 1, bias, ReLU and max-pooling; the whole image stays in cache.

    Args:
      images: as :func:`convolution` takes them, like all but `pool`.
      kernel: as there.
      bias: as there.
      padding: of the convolution.
      pool: what follows it.
      with_places: whether the second result is wanted, as it is for gradients; otherwise it is
        empty.

    Returns:
      `[batch, out_height, out_width, features]` float32, and int8 of the same shape: where in its
      window (row by row) each maximum stood, -1 if it is 0.
    """
    whole = _out_shape(images.shape, kernel.shape[:2], (1, 1), padding, kernel.shape[3])
    shape = _out_shape(whole, *pool, ((0, 0), (0, 0)), whole[3])
    places = shape if with_places else (0, 0, 0, 0)
    out = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(places, jnp.int8)]
    return _call(
        "pooled_convolution", out, images, kernel, bias, padding=padding, pool=pool, whole=whole
    )


def pooled_kernel_gradient(
    images: jax.Array,
    grad: jax.Array,
    places: jax.Array,
    kernel_shape: tuple[int, ...],
    padding: Padding,
    pool: Pool,
) -> jax.Array:
    """Returns the gradient of :func:`pooled_convolution` by its kernel.

    Args:
      images: as there.
      grad: of its first result.
      places: its second result.
      kernel_shape: of the kernel.
      padding: as there.
      pool: as there.
    """
    whole = _out_shape(images.shape, kernel_shape[:2], (1, 1), padding, kernel_shape[3])
    out = jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    arrays = (images, grad, places)
    return _call("pooled_kernel_gradient", out, *arrays, padding=padding, pool=pool, whole=whole)


def pooled_image_gradient(
    turned: jax.Array,
    grad: jax.Array,
    places: jax.Array,
    shape: tuple[int, ...],
    around: Padding,
    pool: Pool,
) -> jax.Array:
    """Returns the gradient of :func:`pooled_convolution` by its images.

    Args:
      turned: the kernel, turned by 180 degrees and with its two last axes swapped; `CHANNELS`
        divides its last one.
      grad: of its first result.
      places: its second result.
      shape: of the images.
      around: padding of the convolution with `turned` that leads from the output to the images.
      pool: as there.
    """
    sides = zip(shape[1:3], turned.shape[:2], around, strict=True)
    whole = (shape[0], *(size + length - 1 - sum(pads) for size, length, pads in sides))
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = (turned, grad, places)
    return _call("pooled_image_gradient", out, *arrays, padding=around, pool=pool, whole=whole)


_SAME_3x3 = ((1, 1), (1, 1))


def depthwise(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its own 3x3 filter, strides of 1 and SAME padding.

    Args:
      images: `[batch, height, width, channels]` float32, `CHANNELS` numbers in a row or more.
      kernel: `[3, 3, 1, channels]` float32.

    Returns:
      `[batch, height, width, channels]` float32.
    """
    out = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    return _call("depthwise", out, images, kernel, padding=_SAME_3x3)


def depthwise_kernel_gradient(images: jax.Array, grad: jax.Array) -> jax.Array:
    """Returns the gradient of :func:`depthwise` by its kernel, `[3, 3, 1, channels]` float32.

    Args:
      images: as there.
      grad: of its result.
    """
    out = jax.ShapeDtypeStruct((3, 3, 1, images.shape[3]), jnp.float32)
    return _call("depthwise_kernel_gradient", out, images, grad, padding=_SAME_3x3)


def _out_shape(images, window, strides, padding, features):
    sides = [
        (size + low + high - length) // stride + 1
        for size, length, stride, (low, high) in zip(
            images[1:3], window, strides, padding, strict=True
        )
    ]
    return (images[0], *sides, features)


def _ints(values):
    return np.asarray(values, np.int64).ravel()


def _call(
    name: str,
    out: Any,
    *arrays: jax.Array,
    padding: Padding,
    strides: Sequence[int] = (1, 1),
    pool: Pool | None = None,
    whole: tuple[int, ...] = (),
    **attributes: Any,
) -> Any:
    """Calls a function of the library.

    Args:
      name: of the function.
      out: shape and type of the result, or a list of them.
      *arrays: what it works on.
      padding: two (low, high) pairs.
      strides: of the convolution.
      pool: of the `pooled_` ones.
      whole: of those, the shape of what is pooled.
      **attributes: what else it wants.
    """
    if pool:
        attributes |= {"conv": _ints(whole[1:3]), "window": _ints(pool)}
    found = jax.ffi.ffi_call(f"fer_jax_{name}", out, vmap_method="sequential")(
        *arrays,
        strides=_ints(strides),
        padding=_ints(padding),
        tasks=np.int64(_tasks()),
        **attributes,
    )
    return jax.tree.map(lambda x: functools.reduce(vary_like, arrays, x), found)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Marks `x` as different on each device of every mesh axis that `like` differs over."""
    axes = tuple(jax.typeof(like).mat.varying - jax.typeof(x).mat.varying)
    return lax.pcast(x, axes, to="varying") if axes else x


def _tasks() -> int:
    """Returns how many tasks share a call: the cores that each virtual device has for itself."""
    devices_here = jax.sharding.get_abstract_mesh().size // jax.process_count()
    return max(1, cpu_cores() // max(1, devices_here))
