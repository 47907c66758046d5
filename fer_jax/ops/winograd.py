"""Convolutions of 3x3 with kernels that were transformed beforehand, for a CPU and one image.

Winograd's F(2x2, 3x3) as in Lavin & Gray 2016, section 4.1: a 2x2 tile of the result takes 16
multiplications for each pair of channels instead of 36. Transforming the kernel costs more than a
convolution of one image saves, so a network that stays as it is has it done once. The library in
C++ convolves with it where it is loaded, XLA elsewhere.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.pool import Padding

KERNEL = (3, 3)


def transform(kernel: np.ndarray, panel: int | None = None) -> np.ndarray:
    """Transforms a kernel for :func:`convolution`.

    Args:
      kernel: `[3, 3, channels, features]` float32.
      panel: None for XLA, else :func:`native.panel`: how many features the library reads in turn of
        each channel, before it comes to the next so many.

    Returns:
      `[16, channels, features]` float32; with a panel `[16, channels * features]`.
    """
    columns = _kernel_sums(_kernel_sums(kernel).swapaxes(0, 1))  # [column, row, ...]
    if panel is None:
        return columns.reshape(16, *kernel.shape[2:])
    rows = columns.swapaxes(0, 1)
    starts = range(0, kernel.shape[3], panel)
    return np.concatenate([rows[..., i : i + panel].reshape(16, -1) for i in starts], axis=1)


def convolution(
    images: jax.Array, transformed: jax.Array, bias: jax.Array, padding: Padding, relu: bool
) -> jax.Array:
    """Convolves with strides of 1, adds a bias, and applies ReLU if asked for.

    Args:
      images: `[batch, height, width, channels]` float32.
      transformed: a kernel, from :func:`transform`. With a panel the library convolves; the kernel
        must then be one that :func:`native.fits_transformed`.
      bias: `[features]` float32, added.
      padding: "SAME", "VALID" or two (low, high) pairs, none negative.
      relu: whether negative results become 0.

    Returns:
      `[batch, out_height, out_width, features]` float32: what `lax.conv_general_dilated` and the
      rest give, but for rounding (within 1e-5 of the largest value for random numbers).
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], KERNEL, (1, 1), padding)
    if transformed.ndim == 2:
        return native.transformed_convolution(images, transformed, bias, padding, relu=relu)
    out = _xla_convolution(images, transformed, padding) + bias[None, None, None]
    return jax.nn.relu(out) if relu else out


def _xla_convolution(images, transformed, padding):
    batch, *sides, channels = images.shape
    (top, bottom), (left, right) = padding
    height, width = sides[0] + top + bottom - 2, sides[1] + left + right - 2
    down, across = -(-height // 2), -(-width // 2)  # tiles, the last of which may reach out
    around = ((top, bottom + 2 * down - height), (left, right + 2 * across - width))
    padded = jnp.pad(images, ((0, 0), *around, (0, 0)))

    # Of every tile at once, the four rows of what it comes from, and of those the four columns.
    rows = _image_sums([padded[:, i : i + 2 * down : 2] for i in range(4)])
    columns = _image_sums([rows[..., j : j + 2 * across : 2, :] for j in range(4)])
    factors = columns.reshape(16, -1, channels)
    products = lax.dot_general(factors, transformed, (((2,), (1,)), ((0,), (0,))))
    columns = products.reshape(4, 4, batch, down, across, transformed.shape[2])
    whole = _result_sums(_result_sums(columns).swapaxes(0, 1))  # [row, column, batch, ...]
    whole = whole.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * down, 2 * across, -1)
    return whole[:, :height, :width]


# The matrices B^T, G and A^T of the paper's equations (9) and (10), each times a stack of arrays.


def _image_sums(x: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]])


def _kernel_sums(x: np.ndarray) -> np.ndarray:
    return np.stack([x[0], (x[0] + x[1] + x[2]) / 2, (x[0] - x[1] + x[2]) / 2, x[2]])


def _result_sums(x: jax.Array) -> jax.Array:
    return jnp.stack([x[0] + x[1] + x[2], x[1] - x[2] - x[3]])
