"""Convolution and max-pooling for XLA's CPU backend in C++ (`cpp/`).

:func:`load` compiles it on the machine that runs it (:mod:`fer_jax.ops.build`); it is then called
through XLA's foreign function interface (`jax.ffi`). `docs/performance.md` has what it gains over
XLA alone, which does everything where it is not loaded. It can go when XLA:CPU's kernel gradients
come near the rate of its matrix products (jax-ml/jax#12868 is about part of that) and when it keeps
a convolution, its ReLU and its pooling in cache together.
"""

import contextlib
import ctypes
import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.machine.environment import cache_folder, cpu_cores
from fer_jax.ops import build

log = logging.getLogger("fer_jax")

CHANNELS = 16  # output channels come in multiples of this: a vector of AVX-512
_MOST_IN_WINDOW = 127  # an argmax is an int8
_TARGETS = (
    "convolution",
    "transformed_convolution",
    "kernel_gradient",
    "pooled_convolution",
    "pooled_kernel_gradient",
    "pooled_image_gradient",
    "moments",
    "norm_gradient_sums",
    "pooled_norm",
    "pooled_norm_gradient_sums",
    "pooled_norm_gradient",
    "depthwise",
    "depthwise_kernel_gradient",
)
_library: ctypes.CDLL | None = None

# Whether convolutions that are traced now round what they multiply to bfloat16, as they do within
# `rounding(True)`. `jit` traces anew where it differs.
rounding = jax.make_user_context(default_value=False)


@functools.cache
def load() -> bool:
    """Loads the library for this process; call it once JAX's devices have been started.

    Networks traced after it run in the library, those before it in XLA. It is kept in
    :func:`fer_jax.machine.environment.cache_folder` and compiled if that has none; where nothing is
    kept, it is compiled anew. With `FER_JAX_NATIVE=0` in the environment, or on an accelerator, it
    is left out.

    Returns:
      Whether it is loaded. If it should be and cannot, a line in the log says why.
    """
    if available() or not _is_wanted():
        return available()
    try:
        with contextlib.ExitStack() as stack:
            folder = cache_folder() or stack.enter_context(tempfile.TemporaryDirectory())
            register(build.library(Path(folder)))
    except (build.NativeError, OSError) as error:
        log.warning("Convolutions run in XLA alone, which is slower: %s", error)
        return False
    return True


def register(path: Path) -> None:
    """Loads a library that has been compiled and makes its functions known to XLA.

    Args:
      path: of the library.

    Raises:
      OSError: if it cannot be loaded.
    """
    global _library
    library = ctypes.CDLL(str(path))
    for question in (library.fer_jax_has_bfloat16, library.fer_jax_has_amx):
        question.restype = ctypes.c_bool  # of an int only the lowest byte is set
    library.fer_jax_panel.restype = ctypes.c_int64
    for name in _TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, f"fer_jax_{name}"))
        jax.ffi.register_ffi_target(f"fer_jax_{name}", handler, platform="cpu")
    _library = library


def load_kept() -> bool:
    """Loads the library if an earlier :func:`load` has kept it: a start must not take its minutes.

    Returns:
      Whether it is loaded. Without a word it is not if there is none of the same sources, compiler,
      jaxlib and processor.
    """
    if available() or not _is_wanted():
        return available()
    with contextlib.suppress(build.NativeError, OSError):
        if (folder := cache_folder()) and (path := build.kept(Path(folder))):
            register(path)
    return available()


def _is_wanted() -> bool:
    return os.environ.get("FER_JAX_NATIVE") != "0" and jax.default_backend() == "cpu"


def available() -> bool:
    """Returns whether the library has been loaded."""
    return _library is not None


def convolutions() -> str:
    """Returns what runs the CPU's convolutions, `native` or `xla`; they differ in rounding."""
    return "native" if available() else "xla"


def has_bfloat16() -> bool:
    """Returns whether the library is loaded and this processor multiplies bfloat16 fast."""
    return _library is not None and bool(_library.fer_jax_has_bfloat16())


def has_amx() -> bool:
    """Returns whether that is Intel's AMX, which takes strides and kernels of any size."""
    return _library is not None and bool(_library.fer_jax_has_amx())


def panel() -> int:
    """Returns how many columns of a transformed kernel the loaded library wants side by side."""
    assert _library is not None
    return int(_library.fer_jax_panel())


Padding = Sequence[tuple[int, int]]


class Pool(NamedTuple):
    """Max-pooling without padding."""

    window: tuple[int, int]  # height, width
    strides: tuple[int, int]


def fits(
    images: Sequence[int], kernel: Sequence[int], padding: Padding, pool: Pool | None = None
) -> bool:
    """Returns whether a convolution is one for the library, which must have been loaded.

    That of an image alone is not: XLA shares it out over the cores, and the library would transform
    a kernel (`cpp/winograd.h`) to use it once. A trained network has that done beforehand, for
    :func:`transformed_convolution`.

    Args:
      images: shape `[batch, height, width, channels]`.
      kernel: shape `[height, width, channels, features]`.
      padding: two (low, high) pairs.
      pool: what follows the convolution, if anything does, its strides then being 1.
    """
    if not available() or images[0] == 1 or min(map(min, padding)) < 0:
        return False
    whole = conv_shape(images, kernel, padding)
    if min(*images[1:], *kernel, *whole[1:]) < 1 or kernel[3] % CHANNELS:
        return False
    if pool is None:
        return True
    height, width = pool.window
    return height <= whole[1] and width <= whole[2] and height * width <= _MOST_IN_WINDOW


def conv_shape(
    images: Sequence[int],
    kernel: Sequence[int],
    padding: Padding,
    strides: Sequence[int] = (1, 1),
) -> tuple[int, ...]:
    """Returns the shape of a convolution's result, of what :func:`fits` takes."""
    return _out_shape(images, kernel[:2], strides, padding, kernel[3])


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    *,
    relu: bool,
) -> jax.Array:
    """Convolves on a CPU, only what :func:`fits`, like gradients and pooling below.

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
    shape = conv_shape(images.shape, kernel.shape, padding, strides)
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = (images, kernel, bias)
    return _call_dense("convolution", out, *arrays, strides=strides, padding=padding, relu=relu)


def fits_transformed(channels: int, features: int) -> bool:
    """Returns whether a 3x3 kernel is for :func:`transformed_convolution`."""
    return available() and channels % CHANNELS == 0 and features % CHANNELS == 0


def transformed_convolution(
    images: jax.Array, transformed: jax.Array, bias: jax.Array, padding: Padding, *, relu: bool
) -> jax.Array:
    """Convolves with strides of 1 and a 3x3 kernel that was transformed beforehand.

    It must be one that :func:`fits_transformed`.

    Args:
      images: `[batch, height, width, channels]` float32. Several cores share one alone.
      transformed: `[16, channels * features]` float32, from
        :func:`fer_jax.ops.winograd.transform`, with :func:`panel`.
      bias: `[features]` float32, added.
      padding: two (low, high) pairs, none negative.
      relu: whether negative results become 0.

    Returns:
      `[batch, out_height, out_width, features]` float32.
    """
    shape = conv_shape(images.shape, (3, 3, images.shape[3], bias.shape[0]), padding)
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = (images, transformed, bias)
    return _call("transformed_convolution", out, *arrays, padding=padding, relu=relu)


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
    return _call_dense("kernel_gradient", out, images, grad, strides=strides, padding=padding)


def pooled_convolution(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    padding: Padding,
    pool: Pool,
    *,
    with_argmax: bool,
) -> list[jax.Array]:
    """Convolution with strides of 1, bias, ReLU and max-pooling; the whole image stays in cache.

    Args:
      images: as :func:`convolution` takes them, like all but `pool`.
      kernel: as there.
      bias: as there.
      padding: of the convolution.
      pool: what follows it.
      with_argmax: whether the second result is wanted, as it is for gradients; otherwise it is
        empty.

    Returns:
      `[batch, out_height, out_width, features]` float32, and int8 of the same shape, the argmax:
      which element of its window (row by row) each maximum is, -1 if it is 0.
    """
    whole = conv_shape(images.shape, kernel.shape, padding)
    shape = _out_shape(whole, *pool, ((0, 0), (0, 0)), whole[3])
    argmax = shape if with_argmax else (0, 0, 0, 0)
    out = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(argmax, jnp.int8)]
    arrays = (images, kernel, bias)
    return _call_dense("pooled_convolution", out, *arrays, padding=padding, window=pool)


def pooled_kernel_gradient(
    images: jax.Array,
    grad: jax.Array,
    argmax: jax.Array,
    kernel_shape: tuple[int, ...],
    padding: Padding,
    pool: Pool,
) -> jax.Array:
    """Returns the gradient of :func:`pooled_convolution` by its kernel.

    Args:
      images: as there.
      grad: of its first result.
      argmax: its second result.
      kernel_shape: of the kernel.
      padding: as there.
      pool: as there.

    Returns:
      `kernel_shape` float32.
    """
    out = jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    arrays = (images, grad, argmax)
    return _call_dense("pooled_kernel_gradient", out, *arrays, padding=padding, window=pool)


def pooled_image_gradient(
    flipped: jax.Array,
    grad: jax.Array,
    argmax: jax.Array,
    shape: tuple[int, ...],
    around: Padding,
    pool: Pool,
) -> jax.Array:
    """Returns the gradient of :func:`pooled_convolution` by its images.

    Args:
      flipped: the kernel, flipped along height and width and with its two last axes swapped;
        `CHANNELS` divides its last one.
      grad: of its first result.
      argmax: its second result.
      shape: of the images.
      around: padding of the convolution with `flipped` that leads from the output to the images.
      pool: as there.

    Returns:
      `shape` float32.
    """
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    arrays = (flipped, grad, argmax)
    return _call_dense("pooled_image_gradient", out, *arrays, padding=around, window=pool)


def fits_norm(images: Sequence[int]) -> bool:
    """Returns whether images of this shape are for :func:`moments`, if not empty."""
    return available() and len(images) == 4 and min(images) > 0 and images[3] % CHANNELS == 0


def moments(images: jax.Array) -> jax.Array:
    """Sums up what batch normalisation needs; the images are read from memory once.

    Args:
      images: `[batch, height, width, channels]` float32, what :func:`fits_norm`.

    Returns:
      `[2, channels]` float32: each channel's mean and its variance, about that mean.
    """
    out = jax.ShapeDtypeStruct((2, images.shape[3]), jnp.float32)
    return _call("moments", out, images)


def norm_gradient_sums(
    images: jax.Array, grad: jax.Array, normalisation: jax.Array, *, relu: bool
) -> jax.Array:
    """Sums up what the gradient of batch normalisation needs.

    Args:
      images: as :func:`moments` takes them.
      grad: of what was made of them, the same shape.
      normalisation: `[4, channels]` float32: how channels were normalised, by which means and
        inverse spreads, and which scales and biases followed.
      relu: whether ReLU followed that.

    Returns:
      `[2, channels]` float32: sums of the gradient behind ReLU, and of its products with the
      normalised images.
    """
    out = jax.ShapeDtypeStruct((2, images.shape[3]), jnp.float32)
    return _call("norm_gradient_sums", out, images, grad, normalisation, relu=relu)


def fits_pooled_norm(images: Sequence[int]) -> bool:
    """Returns whether images of this shape are for :func:`pooled_norm`."""
    return fits_norm(images) and images[1] % 2 == images[2] % 2 == 0


def pooled_norm(images: jax.Array, normalisation: jax.Array) -> list[jax.Array]:
    """Normalises, and takes the maximum of each 2x2 pixels behind a ReLU.

    Args:
      images: `[batch, height, width, channels]` float32, what :func:`fits_pooled_norm`.
      normalisation: as :func:`norm_gradient_sums` takes it.

    Returns:
      `[batch, height / 2, width / 2, channels]` float32, and the argmax, int8 of the same shape, as
      :func:`pooled_convolution` has it.
    """
    shape = (images.shape[0], images.shape[1] // 2, images.shape[2] // 2, images.shape[3])
    out = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int8)]
    return _call("pooled_norm", out, images, normalisation)


def pooled_norm_gradient_sums(
    images: jax.Array, grad: jax.Array, argmax: jax.Array, normalisation: jax.Array
) -> jax.Array:
    """Sums up what the gradient of :func:`pooled_norm` needs.

    Args:
      images: as there.
      grad: of its first result.
      argmax: its second result.
      normalisation: as there.

    Returns:
      `[2, channels]` float32, as :func:`norm_gradient_sums` does.
    """
    out = jax.ShapeDtypeStruct((2, images.shape[3]), jnp.float32)
    return _call("pooled_norm_gradient_sums", out, images, grad, argmax, normalisation)


def pooled_norm_gradient(
    images: jax.Array,
    grad: jax.Array,
    argmax: jax.Array,
    normalisation: jax.Array,
    means: jax.Array,
) -> jax.Array:
    """Returns the gradient of :func:`pooled_norm` by its images, the statistics' part included.

    Args:
      images: as there.
      grad: of its first result.
      argmax: its second result.
      normalisation: as there.
      means: `[2, channels]` float32: what :func:`pooled_norm_gradient_sums` sums up over the global
        batch, by its number of pixels.

    Returns:
      `[batch, height, width, channels]` float32.
    """
    out = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    return _call("pooled_norm_gradient", out, images, grad, argmax, normalisation, means)


def fits_depthwise(images: Sequence[int]) -> bool:
    """Returns whether images of this shape are for :func:`depthwise`: a row fills a vector."""
    return available() and min(images[1:]) > 0 and images[2] * images[3] >= CHANNELS


def depthwise(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its own 3x3 filter, strides of 1 and SAME padding.

    Args:
      images: `[batch, height, width, channels]` float32, what :func:`fits_depthwise`.
      kernel: `[3, 3, 1, channels]` float32.

    Returns:
      `[batch, height, width, channels]` float32.
    """
    out = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    return _call("depthwise", out, images, kernel)


def depthwise_kernel_gradient(images: jax.Array, grad: jax.Array) -> jax.Array:
    """Returns the gradient of :func:`depthwise` by its kernel, `[3, 3, 1, channels]` float32.

    Args:
      images: as there.
      grad: of its result.
    """
    out = jax.ShapeDtypeStruct((3, 3, 1, images.shape[3]), jnp.float32)
    return _call("depthwise_kernel_gradient", out, images, grad)


def _out_shape(images, window, strides, padding, features):
    sides = [
        (size + low + high - length) // stride + 1
        for size, length, stride, (low, high) in zip(
            images[1:3], window, strides, padding, strict=True
        )
    ]
    return (images[0], *sides, features)


def _call_dense(name: str, out: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    return _call(name, out, *arrays, bfloat16=rounding.value, **attributes)


def _call(name: str, out: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    """Calls a function of the library.

    Args:
      name: of the function.
      out: shape and type of the result, or a list of them.
      *arrays: what it works on.
      **attributes: what else it wants: bools, or ints however nested.
    """
    told = {
        key: value if isinstance(value, bool) else np.asarray(value, np.int64).ravel()
        for key, value in attributes.items()
    }
    call = jax.ffi.ffi_call(f"fer_jax_{name}", out, vmap_method="sequential")
    found = call(*arrays, tasks=np.int64(_tasks()), **told)
    return jax.tree.map(lambda x: functools.reduce(vary_like, arrays, x), found)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Marks `x` as different on each device of every mesh axis that `like` differs over."""
    axes = tuple(jax.typeof(like).mat.varying - jax.typeof(x).mat.varying)
    return lax.pcast(x, axes, to="varying") if axes else x


def _tasks() -> int:
    """Returns how many tasks share a call: the cores that each virtual device has for itself."""
    devices_here = jax.sharding.get_abstract_mesh().size // jax.process_count()
    return max(1, cpu_cores() // max(1, devices_here))
