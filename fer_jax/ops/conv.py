"""Convolution and pooling that are fast on a CPU, XLA's own elsewhere.

XLA's CPU backend is slow at the gradients of a convolution's kernel and of pooling, and every
activation goes through memory between two operations. In order, what an operation runs in is

* :mod:`fer_jax.ops.native`, in C++, if it is there and the number of channels fits;
* XLA with gradients written by hand, on a CPU;
* XLA with its own gradients, on any other platform: :func:`jax.lax.platform_dependent` chooses
  inside the rules, so one traced program serves both.

`docs/performance.md` has the measurements.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.native import vary_like

_NHWC = ("NHWC", "HWIO", "NHWC")
Padding = str | Sequence[tuple[int, int]]

# Of 2, 4, 6, 8, 12, 16 and 32 images, 8 were best or within 10 % of it for maps of 16x16 positions
# or more. Maps up to 7x7 are better taken whole, as autodiff does.
_IMAGES_PER_BLOCK = 8
_MIN_POSITIONS = 100


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
    """Convolves like :func:`jax.lax.conv_general_dilated`, with a kernel gradient fast on a CPU.

    The gradient is the hand-written one for plain float32 convolutions in NHWC/HWIO (no dilation,
    no groups); everything else goes to `lax` unchanged.

    Args:
      lhs: `[batch, height, width, channels]` float, the images.
      rhs: `[height, width, channels, features]` float, the kernel.
      window_strides: two ints.
      padding: "SAME", "VALID" or two (low, high) pairs.
      lhs_dilation: as in `lax`, like all that follow.
      rhs_dilation: as in `lax`.
      dimension_numbers: as in `lax`.
      feature_group_count: as in `lax`.
      batch_group_count: as in `lax`.
      precision: as in `lax`.
      preferred_element_type: as in `lax`.

    Returns:
      `[batch, height, width, features]`.

    Raises:
      ValueError, TypeError: as `lax` does, for shapes or types that do not fit.
    """
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and preferred_element_type in (None, jnp.float32)
        and set(lhs_dilation or (1,)) == set(rhs_dilation or (1,)) == {1}
        and feature_group_count == batch_group_count == 1
        and precision is None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    return _plain_conv(lhs, rhs, _no_bias(rhs), window_strides, padding, relu=False)


def conv_relu(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "VALID",
) -> jax.Array:
    """Convolution, bias and ReLU in one: on a CPU the result is written once.

    Args:
      images: `[batch, height, width, channels]` float.
      kernel: `[height, width, channels, features]`, the type of `images`.
      bias: `[features]`, the type of `images`.
      strides: two ints.
      padding: "SAME", "VALID" or two (low, high) pairs.

    Returns:
      `[batch, out_height, out_width, features]`, the type of `images`.

    Raises:
      ValueError, TypeError: as `lax` does, for shapes or types that do not fit.
    """
    if images.dtype != jnp.float32:
        out = lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_NHWC)
        return jax.nn.relu(out + bias[None, None, None])
    return _plain_conv(images, kernel, bias, strides, padding, relu=True)


def conv_relu_max_pool(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    padding: Padding,
    window: tuple[int, int],
    pool_strides: tuple[int, int],
) -> jax.Array:
    """:func:`conv_relu` and :func:`max_pool` (VALID) in one.

    On a CPU the convolution's result never leaves the cache, nor does its gradient: of each image
    only the pooled result is written, and where the maxima stood. Values and gradients are those of
    the two in turn.

    Args:
      images: `[batch, height, width, channels]` float.
      kernel: `[height, width, channels, features]`, the type of `images`.
      bias: `[features]`, the type of `images`.
      padding: of the convolution: "SAME", "VALID" or two (low, high) pairs.
      window: (height, width) of the pool's windows.
      pool_strides: from window to window.

    Returns:
      `[batch, out_height, out_width, features]`, the type of `images`.
    """
    padding = _explicit(padding, images, kernel, (1, 1))
    small = math.prod(window) <= 127
    if images.dtype != jnp.float32 or not small or not _is_native(kernel.shape[3], padding):
        return max_pool(conv_relu(images, kernel, bias, (1, 1), padding), window, pool_strides)
    pool = native.Pool(window, pool_strides)
    return _pooled_conv(*_varying(images, kernel, bias), padding, pool)


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
    """
    return _max_pool(x, _window(x, window_shape, strides, padding))


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
    """
    return _avg_pool(x, _window(x, window_shape, strides, padding))


# ---------------------------------------------------------------------------------- convolution


def _plain_conv(lhs, rhs, bias, strides, padding, relu):
    padding = _explicit(padding, lhs, rhs, strides)
    return _conv(*_varying(lhs, rhs, bias), tuple(strides), padding, relu)


def _explicit(padding, lhs, rhs, strides):
    """Returns padding as two (low, high) pairs of ints that can be hashed."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    return tuple((int(a), int(b)) for a, b in padding)


def _varying(lhs, rhs, bias):
    """Inside `shard_map`, makes the kernel, which may be one for all devices, differ over them.

    Its gradient is then summed over devices by the transpose of this cast, and rules stay local.
    """
    return vary_like(lhs, rhs), vary_like(rhs, lhs), vary_like(vary_like(bias, rhs), lhs)


def _no_bias(rhs):
    return jnp.zeros(rhs.shape[3], rhs.dtype)


def _xla_conv(lhs, rhs, strides, padding):
    return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv(lhs, rhs, bias, strides, padding, relu):
    """Convolution, plus bias, ReLU if asked for."""

    def xla(lhs, rhs, bias):
        out = _xla_conv(lhs, rhs, strides, padding) + bias[None, None, None]
        return jax.nn.relu(out) if relu else out

    if not _is_native(rhs.shape[3], padding):
        return xla(lhs, rhs, bias)
    cpu = functools.partial(native.convolution, strides=strides, padding=padding, relu=relu)
    return lax.platform_dependent(lhs, rhs, bias, cpu=cpu, default=xla)


def _is_native(channels, padding):
    """Whether an operation with so many output channels is one for :mod:`fer_jax.ops.native`."""
    return channels % native.CHANNELS == 0 and min(map(min, padding)) >= 0 and native.available()


def _conv_forward(lhs, rhs, bias, strides, padding, relu):
    out = _conv(lhs, rhs, bias, strides, padding, relu)
    return out, (lhs, rhs, out if relu else None)


def _conv_backward(strides, padding, relu, saved, grad):
    lhs, rhs, out = saved
    if relu:
        grad = jnp.where(out > 0, grad, 0)
    return (
        _image_gradient(lhs, rhs, grad, strides, padding),
        _kernel_gradient(lhs, rhs, grad, strides, padding),
        grad.sum((0, 1, 2)),
    )


def _image_gradient(lhs, rhs, grad, strides, padding):
    """The convolution of the output's gradient with the kernel turned by 180 degrees."""

    def xla(rhs, grad):
        return jax.vjp(lambda lhs: _xla_conv(lhs, rhs, strides, padding), lhs)[1](grad)[0]

    around = _around(lhs, rhs, padding)
    if strides != (1, 1) or not _is_native(rhs.shape[2], around):
        return xla(rhs, grad)

    def cpu(rhs, grad):
        turned = _turned(rhs)
        return native.convolution(grad, turned, _no_bias(turned), strides, around, relu=False)

    return lax.platform_dependent(rhs, grad, cpu=cpu, default=xla)


def _around(lhs, rhs, padding):
    """Padding of the convolution with :func:`_turned` that gives the images' gradient."""
    return tuple(
        (length - 1 - low, length - 1 - high)
        for length, (low, high) in zip(rhs.shape[:2], padding, strict=True)
    )


def _turned(rhs):
    return rhs[::-1, ::-1].swapaxes(2, 3)


def _kernel_gradient(lhs, rhs, grad, strides, padding):
    def xla(lhs, grad):
        return jax.vjp(lambda rhs: _xla_conv(lhs, rhs, strides, padding), rhs)[1](grad)[0]

    def cpu(lhs, grad):
        if _is_native(rhs.shape[3], padding):
            return native.kernel_gradient(lhs, grad, rhs.shape, strides, padding)
        if grad.shape[1] * grad.shape[2] < _MIN_POSITIONS:
            return xla(lhs, grad)
        return _blocked_kernel_gradient(lhs, grad, rhs.shape, strides, padding)

    return lax.platform_dependent(lhs, grad, cpu=cpu, default=xla)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pooled_conv(images, kernel, bias, padding, pool):
    def cpu(images, kernel, bias):
        return native.pooled_convolution(images, kernel, bias, padding, pool, with_places=False)[0]

    xla = functools.partial(_in_turn, padding=padding, pool=pool)
    return lax.platform_dependent(images, kernel, bias, cpu=cpu, default=xla)


def _in_turn(images, kernel, bias, padding, pool):
    return max_pool(conv_relu(images, kernel, bias, (1, 1), padding), *pool)


def _pooled_conv_forward(images, kernel, bias, padding, pool):
    def cpu(images, kernel, bias):
        return native.pooled_convolution(images, kernel, bias, padding, pool, with_places=True)

    def xla(images, kernel, bias):
        out = _in_turn(images, kernel, bias, padding, pool)
        return [out, jnp.zeros_like(out, jnp.int8)]

    out, places = lax.platform_dependent(images, kernel, bias, cpu=cpu, default=xla)
    return out, (images, kernel, bias, places)


def _pooled_conv_backward(padding, pool, saved, grad):
    def by(argument):
        def default(images, kernel, bias, places, grad):
            arguments = (images, kernel, bias)
            f = functools.partial(_in_turn, padding=padding, pool=pool)
            return jax.vjp(f, *arguments)[1](grad)[argument]

        return default

    def by_images(images, kernel, bias, places, grad):
        around = _around(images, kernel, padding)
        if not _is_native(kernel.shape[2], around):
            return by(0)(images, kernel, bias, places, grad)
        return native.pooled_image_gradient(
            _turned(kernel), grad, places, images.shape, around, pool
        )

    def by_kernel(images, kernel, bias, places, grad):
        del bias
        return native.pooled_kernel_gradient(images, grad, places, kernel.shape, padding, pool)

    def by_bias(images, kernel, bias, places, grad):
        return jnp.where(places >= 0, grad, 0).sum((0, 1, 2))

    # One by one, so that what is not asked for is not computed.
    return tuple(
        lax.platform_dependent(*saved, grad, cpu=cpu, default=by(argument))
        for argument, cpu in enumerate((by_images, by_kernel, by_bias))
    )


_pooled_conv.defvjp(_pooled_conv_forward, _pooled_conv_backward)


def _blocked_kernel_gradient(lhs, grad, kernel_shape, strides, padding):
    """Gradient of the kernel: a convolution of images and output gradient over the batch.

    Channels take the place of the batch and images that of channels. Autodiff writes the same
    convolution over the whole batch at once: its operands are transposed through memory and its
    inner products are longer than the cache holds. Over a few images at a time it takes 0.4 to 0.7
    of the time on the study's larger maps (results/cpu_ops_xla.json).
    In NHWC, as it is here, a convolution is fast inside a loop too (jax-ml/jax#12868); all of this
    can go when XLA:CPU blocks the gradient by itself.
    """
    height, width, _, _ = kernel_shape
    lhs = lax.pad(
        lhs, jnp.zeros((), lhs.dtype), ((0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0))
    )

    def block(lhs, grad):
        kernel = lax.conv_general_dilated(
            lhs.transpose(3, 1, 2, 0),
            grad.transpose(1, 2, 0, 3),
            (1, 1),
            "VALID",
            rhs_dilation=strides,
            dimension_numbers=_NHWC,
        )
        # Rows that the strides skip leave room for kernels larger than this one.
        return kernel[:, :height, :width].transpose(1, 2, 0, 3)

    images = _IMAGES_PER_BLOCK
    blocks, rest = divmod(lhs.shape[0], images)
    total = vary_like(jnp.zeros(kernel_shape, lhs.dtype), grad)
    if blocks:
        split = [x[: blocks * images].reshape(blocks, images, *x.shape[1:]) for x in (lhs, grad)]
        total, _ = lax.scan(lambda total, xs: (total + block(*xs), None), total, tuple(split))
    return total + block(lhs[blocks * images :], grad[blocks * images :]) if rest else total


# -------------------------------------------------------------------------------------- pooling


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
    """Maxima of strided slices, rows first: `reduce_window` does not share work between windows.

    Windows 5x5, stride 2, of [96, 44, 44, 64]: 7 times as fast; windows 2x2: 1.3 to 1.5 times.
    """
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _places(x, window, axis))
    return x


def _places(x, window, axis):
    """Returns, for each place in a window along `axis` (1 or 2), the elements there."""
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
    """The place in its window of each maximum, then each element's share by comparing places.

    Autodiff emits `select_and_scatter`, which one thread runs on a CPU and which stores element by
    element. This takes a 13th to a 17th of the time on the study's layers (results/cpu_ops.json)
    and can go when XLA:CPU has a parallel one.
    """
    height, width = window[0]
    dtype = jnp.dtype(jnp.int8 if height * width <= 128 else jnp.int32)
    largest, place = None, jnp.zeros_like(grad, dtype)
    for i, row in enumerate(_places(x, window, axis=1)):
        for j, here in enumerate(_places(row, window, axis=2)):
            if largest is not None:
                place = jnp.where(here > largest, dtype.type(i * width + j), place)
            largest = here if largest is None else jnp.maximum(here, largest)
    return _spread(x.shape, grad, window, place)


def _avg_gradient(x, grad, window):
    """Each element's sum over its windows: 7 times as fast as autodiff's on a CPU."""
    return _spread(x.shape, grad / grad.dtype.type(math.prod(window[0])), window)


def _spread(shape, grad, window, place=None):
    """Hands each window's gradient to all its elements, or to the one at `place` (row-major).

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

    dtype = jnp.dtype(jnp.int32) if place is None else place.dtype
    grad, place = pad(grad, 0), None if place is None else pad(place, -1)
    row = lax.broadcasted_iota(dtype, (1, 1, down, 1, across, 1), 2)
    column = lax.broadcasted_iota(dtype, (1, 1, down, 1, across, 1), 4)
    total = jnp.zeros((images, rows, down, columns, across, channels), grad.dtype)
    for i in range(above + 1):
        for j in range(before + 1):
            cells = (slice(above - i, above - i + rows), slice(before - j, before - j + columns))
            y, x = row + dtype.type(i * down), column + dtype.type(j * across)
            hit = (y < dtype.type(height)) & (x < dtype.type(width))
            if place is not None:
                hit &= y * dtype.type(width) + x == place[:, cells[0], None, cells[1], None]
            total += jnp.where(hit, grad[:, cells[0], None, cells[1], None], 0)
    total = total.reshape(images, rows * down, columns * across, channels)
    return total[:, top : top + shape[1], left : left + shape[2]]


_max_pool = _make_pool(_xla_max_pool, _strided_max, _max_gradient)
_avg_pool = _make_pool(_xla_avg_pool, _xla_avg_pool, _avg_gradient)
