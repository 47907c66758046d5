"""Pooling that is fast on a CPU, XLA's own elsewhere.

XLA's CPU backend is slow at the gradients of pooling. On a CPU they are written by hand here;
:func:`jax.lax.platform_dependent` chooses inside the rules, so one traced program serves every
platform. `docs/performance.md` has the measurements.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


def max_pool(
    x: jax.Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Takes the maximum of each window; same signature as `flax.linen.max_pool`.

    The gradient of a window goes to its largest element, at a tie to the first of them in row-major
    order, so the gradients handed out always sum to the one that came in. XLA's own rule, used off
    the CPU, does the same.

    Args:
      x: `[batch, height, width, channels]` float.
      window_shape: (height, width) of a window.
      strides: from window to window; (1, 1) if None.
      padding: "SAME", "VALID" or two (low, high) pairs; padded places never win.

    Returns:
      `[batch, out_height, out_width, channels]`, the type of `x`.

    Raises:
      ValueError: if an image, a window or its strides have another number of sides.
    """
    return _max_pool(x, _window(x, window_shape, strides, padding))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Takes the maximum of each 2x2 pixels, as :func:`max_pool` does.

    Args:
      x: `[batch, height, width, channels]` float.

    Returns:
      `[batch, height // 2, width // 2, channels]`, the type of `x`.
    """
    return max_pool(x, (2, 2), (2, 2))


def avg_pool(
    x: jax.Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Averages each window; same signature as `flax.linen.avg_pool`, padding counted as zeros.

    Args:
      x: `[batch, height, width, channels]` float.
      window_shape: (height, width) of a window.
      strides: from window to window; (1, 1) if None.
      padding: "SAME", "VALID" or two (low, high) pairs.

    Returns:
      `[batch, out_height, out_width, channels]`, the type of `x`.

    Raises:
      ValueError: if an image, a window or its strides have another number of sides.
    """
    return _avg_pool(x, _window(x, window_shape, strides, padding))


def _window(x, window_shape, strides, padding):
    """Returns (window, strides, padding) as tuples of ints that can be hashed."""
    window, strides = tuple(window_shape), tuple(strides or (1,) * len(window_shape))
    if x.ndim != 4 or len(window) != 2 or len(strides) != 2:
        raise ValueError(
            f"pooling takes [batch, height, width, channels] and windows (height, width), "
            f"not shape {x.shape}, window {window}, strides {strides}"
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    padding = tuple((int(a), int(b)) for a, b in padding)
    for size, length, (low, high) in zip(x.shape[1:3], window, padding, strict=True):
        if length > size + low + high:
            raise ValueError(f"pooling window {window} does not fit into {x.shape} with {padding}")
    return window, strides, padding


def _reduce(x, init, op, window):
    shape, strides, padding = ((1, *window[0], 1), (1, *window[1], 1), ((0, 0), *window[2], (0, 0)))
    return lax.reduce_window(x, x.dtype.type(init), op, shape, strides, padding)


def _xla_max_pool(x, window):
    return _reduce(x, -jnp.inf, lax.max, window)


def _strided_max(x, window):
    """Maxima of strided slices, rows first: `reduce_window` does not share work between windows."""
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _slices(x, window, axis))
    return x


def _slices(x, window, axis):
    """Returns the first elements of all windows along `axis` (1 or 2), the second ones, ..."""
    length, stride, padding = (sizes[axis - 1] for sizes in window)
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (*padding, 0)
    x = lax.pad(x, x.dtype.type(-jnp.inf), pads)
    span = (x.shape[axis] - length) // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(length)]


def _xla_avg_pool(x, window):
    return _reduce(x, 0, lax.add, window) / x.dtype.type(math.prod(window[0]))


def _make_pool(xla, cpu, cpu_gradient):
    """Returns `xla`; on a CPU `cpu(x, window)`, its gradient `cpu_gradient(x, grad, window)`."""

    def forward(x, window):
        default = functools.partial(xla, window=window)
        return lax.platform_dependent(x, cpu=functools.partial(cpu, window=window), default=default)

    def backward(window, x, grad):
        def default(x, grad):
            return jax.vjp(lambda x: xla(x, window), x)[1](grad)[0]

        fast = functools.partial(cpu_gradient, window=window)
        return (lax.platform_dependent(x, grad, cpu=fast, default=default),)

    pool = jax.custom_vjp(forward, nondiff_argnums=(1,))
    pool.defvjp(lambda x, window: (forward(x, window), x), backward)
    return pool


def _max_gradient(x, grad, window):
    """The argmax of each window, then each element's share by comparing with it.

    Autodiff emits `select_and_scatter`, which one thread runs on a CPU and which stores element by
    element. This can go when XLA:CPU has a parallel one.
    """
    height, width = window[0]
    dtype = jnp.dtype(jnp.int8 if height * width <= 128 else jnp.int32)
    largest, argmax = None, jnp.zeros_like(grad, dtype)
    for i, row in enumerate(_slices(x, window, axis=1)):
        for j, here in enumerate(_slices(row, window, axis=2)):
            if largest is not None:
                argmax = jnp.where(here > largest, dtype.type(i * width + j), argmax)
            largest = here if largest is None else jnp.maximum(here, largest)
    return _spread(x.shape, grad, window, argmax)


def _avg_gradient(x, grad, window):
    """Each element's sum over its windows."""
    return _spread(x.shape, grad / grad.dtype.type(math.prod(window[0])), window)


def _spread(shape, grad, window, argmax=None):
    """Hands each window's gradient to all its elements, or to its `argmax` (row-major).

    The padded input is cut into cells as large as a stride, one for each window's first corner;
    a window then reaches over a few cells to the right and below. Seen from the input, element
    (row, column) of a cell is element (row + i * stride, ...) of the window i cells above: all
    comparisons run over whole arrays without any scatter, in one fused loop.
    """
    (height, width), (down, across), ((top, bottom), (left, right)) = window
    images, _, _, channels = grad.shape
    rows, columns = -(-(shape[1] + top + bottom) // down), -(-(shape[2] + left + right) // across)
    above, before = -(-height // down) - 1, -(-width // across) - 1

    def pad(x, value):
        rest = (rows - x.shape[1], columns - x.shape[2])
        value = jnp.asarray(value, x.dtype)
        return lax.pad(x, value, ((0, 0, 0), (above, rest[0], 0), (before, rest[1], 0), (0, 0, 0)))

    dtype = jnp.dtype(jnp.int32) if argmax is None else argmax.dtype
    grad, argmax = pad(grad, 0), None if argmax is None else pad(argmax, -1)
    row = lax.broadcasted_iota(dtype, (1, 1, down, 1, across, 1), 2)
    column = lax.broadcasted_iota(dtype, (1, 1, down, 1, across, 1), 4)
    total = jnp.zeros((images, rows, down, columns, across, channels), grad.dtype)
    for i in range(above + 1):
        for j in range(before + 1):
            cells = (slice(above - i, above - i + rows), slice(before - j, before - j + columns))
            y, x = row + dtype.type(i * down), column + dtype.type(j * across)
            hit = (y < dtype.type(height)) & (x < dtype.type(width))
            if argmax is not None:
                hit &= y * dtype.type(width) + x == argmax[:, cells[0], None, cells[1], None]
            total += jnp.where(hit, grad[:, cells[0], None, cells[1], None], 0)
    total = total.reshape(images, rows * down, columns * across, channels)
    return total[:, top : top + shape[1], left : left + shape[2]]


_max_pool = _make_pool(_xla_max_pool, _strided_max, _max_gradient)
_avg_pool = _make_pool(_xla_avg_pool, _xla_avg_pool, _avg_gradient)
