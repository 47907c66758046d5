"""Compares a compiled library's operations with their definitions in NumPy and float64.

`python -m fer_jax.ops.selftest LIBRARY` ends with status 0 if every way to compute that the library
has gives the right numbers. :mod:`fer_jax.ops.build` runs it on what it has compiled.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.ops import native, winograd
from fer_jax.ops.native import Padding, Pool

# Of the largest number: in tiles of 4x4 float32 rounds by a few millionths, bfloat16 by 1 %.
FLOAT32, BFLOAT16 = 1e-4, 5e-2
_ONES = (1, 1)
_VALID, _AROUND = ((0, 0), (0, 0)), ((1, 1), (1, 1))

# Images, kernel, strides, padding; together they take every way through `cpp/`.
CONVOLUTIONS = (
    ((3, 12, 11, 3), (3, 2, 3, 48), (2, 1), ((1, 0), (2, 1))),  # as it is defined
    ((3, 5, 9, 16), (5, 3, 16, 16), _ONES, ((4, 5), (0, 6))),
    ((3, 9, 8, 48), (3, 3, 48, 16), (2, 2), _AROUND),
    ((2, 8, 7, 32), (1, 1, 32, 16), (2, 2), _VALID),
    ((2, 6, 9, 16), (5, 5, 16, 32), (2, 2), ((2, 2), (2, 2))),
    (
        (2, 3, 37, 48),
        (3, 1, 48, 48),
        _ONES,
        ((1, 1), (0, 0)),
    ),  # rows longer than two of AMX's tiles
    ((3, 13, 2, 16), (3, 3, 16, 32), _ONES, _AROUND),  # in tiles of 2x2
    ((3, 7, 5, 16), (3, 3, 16, 48), _ONES, _AROUND),  # of 3x3
    ((5, 26, 17, 32), (3, 3, 32, 48), _ONES, _VALID),  # of 4x4
)
# What AMX's way writes past the cache, and no other; NumPy takes a second for it.
LARGE = ((2, 128, 130, 16), (1, 1, 16, 32))
_HALF = Pool((2, 2), (2, 2))
POOLS = (_HALF, Pool((3, 2), (1, 3)))
DEPTHWISE = ((3, 5, 4, 6), (2, 7, 8, 16))


def check() -> None:
    """Raises an AssertionError that names an operation of the loaded library that is wrong."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))

    def whole(*shape: int) -> jax.Array:
        """Numbers that bfloat16 holds: AMX then makes no error at all."""
        return jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)

    with native.rounding(False):
        _check_dense(normal, FLOAT32)
        check_norm(normal(5, 4, 3, 48), normal(5, 4, 3, 48), normal(2, 48))
        check_pooled_norm(normal(5, 4, 6, 48), normal(5, 2, 3, 48), normal(2, 48))
        for images, kernel, strides, padding in CONVOLUTIONS:
            if kernel[:2] == winograd.KERNEL and strides == _ONES:
                check_transformed(normal(*images), normal(*kernel), normal(kernel[3]), padding)
        for shape in DEPTHWISE:
            check_depthwise(normal(*shape), normal(3, 3, 1, shape[3]), normal(*shape))
    with native.rounding(True):
        _check_dense(whole, FLOAT32 if native.has_amx() else BFLOAT16)
        _check_dense(normal, BFLOAT16)
        if native.has_amx():
            images, kernel = LARGE
            arrays = whole(*images), whole(*kernel), whole(kernel[3])
            grad = whole(*native.conv_shape(images, kernel, _VALID))
            check_convolution(*arrays, grad, _ONES, _VALID, FLOAT32)


def _check_dense(draw: Callable[..., jax.Array], tolerance: float) -> None:
    for images, kernel, strides, padding in CONVOLUTIONS:
        arrays = draw(*images), draw(*kernel), draw(kernel[3])
        grad = draw(*native.conv_shape(images, kernel, padding, strides))
        check_convolution(*arrays, grad, strides, padding, tolerance)
        if strides == _ONES:
            for pool in POOLS:
                check_pooled(*arrays, grad, padding, pool, tolerance)


def check_convolution(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    tolerance: float,
) -> None:
    """Checks a convolution with and without ReLU, and its kernel's gradient."""
    expected = _convolve(images, kernel, strides, padding) + np.asarray(bias)
    out = native.convolution(images, kernel, bias, strides, padding, relu=False)
    _compare("convolution", out, expected, tolerance)
    out = native.convolution(images, kernel, bias, strides, padding, relu=True)
    _compare("convolution with ReLU", out, np.maximum(expected, 0), tolerance)
    out = native.kernel_gradient(images, grad, kernel.shape, strides, padding)
    expected = _kernel_gradient(images, grad, kernel.shape, strides, padding)
    _compare("kernel gradient", out, expected, tolerance)


def check_transformed(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, padding: Padding
) -> None:
    """Checks a convolution with a kernel that was transformed beforehand."""
    transformed = jnp.asarray(winograd.transform(np.asarray(kernel), native.panel()))
    expected = _convolve(images, kernel, _ONES, padding) + np.asarray(bias)
    for relu in (False, True):
        out = native.transformed_convolution(images, transformed, bias, padding, relu=relu)
        expected = np.maximum(expected, 0) if relu else expected
        _compare("convolution with a transformed kernel" + " and ReLU" * relu, out, expected)


def check_pooled(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    grad: jax.Array,
    padding: Padding,
    pool: Pool,
    tolerance: float,
) -> None:
    """Checks a convolution with ReLU and max-pooling, and its gradients where they are there."""
    whole = np.maximum(_convolve(images, kernel, _ONES, padding) + np.asarray(bias), 0)
    windows = np.stack(list(_elements(whole, pool)))
    largest = windows.max(0)
    out, argmax = native.pooled_convolution(images, kernel, bias, padding, pool, with_argmax=True)
    _compare("pooled convolution", out, largest, tolerance)
    # Of numbers that are equal but for rounding, either may be the largest.
    index = np.asarray(argmax, int)
    chosen = np.take_along_axis(windows, np.maximum(index, 0)[None], 0)[0]
    _compare("argmax", np.where(index < 0, 0, chosen), largest, tolerance)
    grad = grad[:, : largest.shape[1], : largest.shape[2]]
    spread = np.zeros(whole.shape)
    for i, element in enumerate(_elements(spread, pool)):
        element += np.where(index == i, np.asarray(grad), 0)
    found = native.pooled_kernel_gradient(images, grad, argmax, kernel.shape, padding, pool)
    expected = _kernel_gradient(images, spread, kernel.shape, _ONES, padding)
    _compare("kernel gradient of a pooled convolution", found, expected, tolerance)
    around = [
        (length - 1 - low, length - 1 - high)
        for length, (low, high) in zip(kernel.shape[:2], padding, strict=True)
    ]
    if images.shape[3] % native.CHANNELS == 0 and min(map(min, around)) >= 0:
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        found = native.pooled_image_gradient(flipped, grad, argmax, images.shape, around, pool)
        expected = _convolve(spread, flipped, _ONES, around)
        _compare("image gradient of a pooled convolution", found, expected, tolerance)


def check_norm(images: jax.Array, grad: jax.Array, scale_and_bias: jax.Array) -> None:
    """Checks what batch normalisation sums up over a batch."""
    x, g, (scale, bias) = (np.asarray(a, float) for a in (images, grad, scale_and_bias))
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    _compare("moments", native.moments(images), np.stack([mean, var]))
    normal = (x - mean) / np.sqrt(var)
    table = jnp.asarray(np.stack([mean, 1 / np.sqrt(var), scale, bias]), jnp.float32)
    for relu in (False, True):
        behind = np.where(normal * scale + bias > 0, g, 0) if relu else g
        expected = np.stack([behind.sum((0, 1, 2)), (behind * normal).sum((0, 1, 2))])
        found = native.norm_gradient_sums(images, grad, table, relu=relu)
        _compare("gradient sums of a normalisation", found, expected)


def check_pooled_norm(images: jax.Array, grad: jax.Array, scale_and_bias: jax.Array) -> None:
    """Checks normalisation, ReLU and max-pooling in one, and its gradients."""
    x, g, (scale, bias) = (np.asarray(a, float) for a in (images, grad, scale_and_bias))
    mean, inverse = x.mean((0, 1, 2)), 1 / x.std((0, 1, 2))
    normal = (x - mean) * inverse
    table = jnp.asarray(np.stack([mean, inverse, scale, bias]), jnp.float32)
    windows = np.stack(list(_elements(np.maximum(normal * scale + bias, 0), _HALF)))
    out, argmax = native.pooled_norm(images, table)
    _compare("pooled normalisation", out, windows.max(0))
    index = np.where(windows.max(0) > 0, windows.argmax(0), -1)
    _compare("argmax of a pooled normalisation", argmax, index)
    spread = np.zeros(x.shape)
    for i, element in enumerate(_elements(spread, _HALF)):
        element += np.where(index == i, g, 0)
    sums = np.stack([spread.sum((0, 1, 2)), (spread * normal).sum((0, 1, 2))])
    found = native.pooled_norm_gradient_sums(images, grad, argmax, table)
    _compare("gradient sums of a pooled normalisation", found, sums)
    means = sums / (x.size / x.shape[3])
    expected = (spread - means[0] - normal * means[1]) * inverse * scale
    found = native.pooled_norm_gradient(
        images, grad, argmax, table, jnp.asarray(means, jnp.float32)
    )
    _compare("gradient of a pooled normalisation", found, expected)


def check_depthwise(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> None:
    """Checks a depthwise convolution and its kernel's gradient."""
    taps = list(_taps(images, (3, 3), _ONES, _AROUND, images.shape[1:3]))
    weights = np.asarray(kernel)
    _compare(
        "depthwise",
        native.depthwise(images, kernel),
        np.sum([x * weights[i, j, 0] for (i, j), x in taps], 0),
    )
    expected = np.reshape([(x * np.asarray(grad)).sum((0, 1, 2)) for _, x in taps], kernel.shape)
    found = native.depthwise_kernel_gradient(images, grad)
    _compare("kernel gradient of depthwise", found, expected)


def _compare(name, found, expected, tolerance=FLOAT32):
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    if not error < tolerance:
        raise AssertionError(f"{name} is wrong: off by {error:.1e} of its largest number")


def _taps(images, window, strides, padding, sides):
    """Yields (i, j), and what element (i, j) of the window meets at each of `sides` positions."""
    padded = np.pad(np.asarray(images, float), ((0, 0), *padding, (0, 0)))
    for i in range(window[0]):
        for j in range(window[1]):
            down, across = (
                slice(at, at + (side - 1) * stride + 1, stride)
                for at, side, stride in zip((i, j), sides, strides, strict=True)
            )
            yield (i, j), padded[:, down, across]


def _convolve(images, kernel, strides, padding):
    shape = native.conv_shape(images.shape, kernel.shape, padding, strides)
    taps = _taps(images, kernel.shape, strides, padding, shape[1:3])
    kernel = np.asarray(kernel)
    return np.sum([np.einsum("nhwc,cf->nhwf", x, kernel[i, j]) for (i, j), x in taps], 0)


def _kernel_gradient(images, grad, shape, strides, padding):
    taps = _taps(images, shape, strides, padding, grad.shape[1:3])
    return np.reshape([np.einsum("nhwc,nhwf->cf", x, grad) for _, x in taps], shape)


def _elements(x, pool):
    """Yields views of the first elements of all windows, of the second ones, ..."""
    sides = [
        (size - length) // stride + 1
        for size, length, stride in zip(x.shape[1:3], *pool, strict=True)
    ]
    for i in range(pool.window[0]):
        for j in range(pool.window[1]):
            down, across = (
                slice(at, at + (side - 1) * stride + 1, stride)
                for at, side, stride in zip((i, j), sides, pool.strides, strict=True)
            )
            yield x[:, down, across]


if __name__ == "__main__":
    native.register(Path(sys.argv[1]))
    try:
        check()
    except AssertionError as error:
        sys.exit(f"{error}")
