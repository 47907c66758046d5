"""Convolution that is fast on a CPU, XLA's own elsewhere.

XLA's CPU backend is slow at the gradient of a convolution's kernel, and every activation goes
through memory between two operations. In order, what an operation runs in is

* :mod:`fer_jax.ops.native`, in C++, if it is loaded and the shapes fit;
* XLA with gradients written by hand, on a CPU;
* XLA with its own gradients, on any other platform: :func:`jax.lax.platform_dependent` chooses
  inside the rules, so one traced program serves both.

`docs/performance.md` has the measurements.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.native import vary_like
from fer_jax.ops.pool import Padding, max_pool

_NHWC = ("NHWC", "HWIO", "NHWC")

# So many images' operands stay in cache; smaller maps are better taken whole, as autodiff does.
_IMAGES_PER_BLOCK = 8
_MIN_POSITIONS = 100  # of an output


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
    arrays, padding = _prepare(lhs, rhs, _no_bias(rhs), window_strides, padding)
    return _conv(*arrays, tuple(window_strides), padding, False)


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
    arrays, padding = _prepare(images, kernel, bias, strides, padding)
    return _conv(*arrays, tuple(strides), padding, True)


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

    Raises:
      ValueError, TypeError: as :func:`conv_relu` and :func:`max_pool` do.
    """
    arrays, padding = _prepare(images, kernel, bias, (1, 1), padding)
    pool = native.Pool((window[0], window[1]), (pool_strides[0], pool_strides[1]))
    float32 = images.dtype == jnp.float32
    if not float32 or not native.fits(images.shape, kernel.shape, padding, pool):
        return _in_turn(images, kernel, bias, padding, pool)
    return _pooled_conv(*arrays, padding, pool)


def _prepare(images, kernel, bias, strides, padding):
    """Returns (images, kernel, bias) and the padding as the rules below take them.

    Padding becomes two (low, high) pairs of ints that can be hashed. Inside `shard_map`, the
    kernel, which may be one for all devices, is made to differ over them. Its gradient is then
    summed over devices by the transpose of this cast, and rules stay local.

    Raises:
      ValueError: if the bias is not one number for each feature.
    """
    if bias.shape != kernel.shape[3:]:
        raise ValueError(f"bias has shape {bias.shape}; it must be {kernel.shape[3:]}")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    arrays = (
        vary_like(images, kernel),
        vary_like(kernel, images),
        vary_like(vary_like(bias, kernel), images),
    )
    return arrays, tuple((int(low), int(high)) for low, high in padding)


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

    if not native.fits(lhs.shape, rhs.shape, padding):
        return xla(lhs, rhs, bias)
    cpu = functools.partial(native.convolution, strides=strides, padding=padding, relu=relu)
    return lax.platform_dependent(lhs, rhs, bias, cpu=cpu, default=xla)


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
    """The convolution of the output's gradient with the flipped kernel."""

    def xla(rhs, grad):
        return jax.vjp(lambda lhs: _xla_conv(lhs, rhs, strides, padding), lhs)[1](grad)[0]

    around = _around(rhs, padding)
    dense = _is_denser(rhs.shape, strides)
    if not dense and strides != (1, 1):
        return xla(rhs, grad)
    if not native.fits(grad.shape, _flipped_shape(rhs), around):
        return xla(rhs, grad)

    def cpu(rhs, grad):
        if dense:
            grad = _dilated(grad, lhs, rhs, strides, padding)
        flipped = _flipped(rhs)
        return native.convolution(grad, flipped, _no_bias(flipped), (1, 1), around, relu=False)

    return lax.platform_dependent(rhs, grad, cpu=cpu, default=xla)


def _is_denser(kernel_shape, strides):
    """Whether gradients are faster with the positions that the strides skip, and zeros there.

    Convolutions of 3x3 with strides of 1 have fewer multiplications, and those in bfloat16
    (`cpp/winograd.h`). In float32 that does not make up for what is added to zeros.
    """
    height, width, channels, features = kernel_shape
    fits = channels % native.CHANNELS == features % native.CHANNELS == 0
    return fits and (height, width, *strides) == (3, 3, 2, 2) and native.rounding.value


def _dilated(grad, lhs, rhs, strides, padding):
    """The output's gradient had the strides been 1: zeros stand where they step over."""
    whole = native.conv_shape(lhs.shape, rhs.shape, padding)[1:3]
    sides = [
        (0, side - (length - 1) * stride - 1, stride - 1)
        for side, length, stride in zip(whole, grad.shape[1:3], strides, strict=True)
    ]
    return lax.pad(grad, jnp.zeros((), grad.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def _around(rhs, padding):
    """Padding of the convolution with :func:`_flipped` that gives the images' gradient."""
    return tuple(
        (length - 1 - low, length - 1 - high)
        for length, (low, high) in zip(rhs.shape[:2], padding, strict=True)
    )


def _flipped(rhs):
    """The kernel that leads from the output's gradient to the images': turned by 180 degrees."""
    return rhs[::-1, ::-1].swapaxes(2, 3)


def _flipped_shape(rhs):
    height, width, channels, features = rhs.shape
    return height, width, features, channels


def _kernel_gradient(lhs, rhs, grad, strides, padding):
    def xla(lhs, grad):
        return jax.vjp(lambda rhs: _xla_conv(lhs, rhs, strides, padding), rhs)[1](grad)[0]

    def cpu(lhs, grad):
        if native.fits(lhs.shape, rhs.shape, padding):
            # Narrower ones gain nothing, and AMX steps over what strides skip.
            if _is_denser(rhs.shape, strides) and lhs.shape[3] >= 64 and not native.has_amx():
                dilated = _dilated(grad, lhs, rhs, strides, padding)
                return native.kernel_gradient(lhs, dilated, rhs.shape, (1, 1), padding)
            return native.kernel_gradient(lhs, grad, rhs.shape, strides, padding)
        if grad.shape[1] * grad.shape[2] < _MIN_POSITIONS:
            return xla(lhs, grad)
        return _blocked_kernel_gradient(lhs, grad, rhs.shape, strides, padding)

    return lax.platform_dependent(lhs, grad, cpu=cpu, default=xla)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pooled_conv(images, kernel, bias, padding, pool):
    def cpu(images, kernel, bias):
        return native.pooled_convolution(images, kernel, bias, padding, pool, with_argmax=False)[0]

    xla = functools.partial(_in_turn, padding=padding, pool=pool)
    return lax.platform_dependent(images, kernel, bias, cpu=cpu, default=xla)


def _in_turn(images, kernel, bias, padding, pool):
    return max_pool(conv_relu(images, kernel, bias, (1, 1), padding), *pool)


def _pooled_conv_forward(images, kernel, bias, padding, pool):
    def cpu(images, kernel, bias):
        return native.pooled_convolution(images, kernel, bias, padding, pool, with_argmax=True)

    def xla(images, kernel, bias):
        out = _in_turn(images, kernel, bias, padding, pool)
        return [out, jnp.zeros_like(out, jnp.int8)]

    out, argmax = lax.platform_dependent(images, kernel, bias, cpu=cpu, default=xla)
    return out, (images, kernel, bias, argmax)


def _pooled_conv_backward(padding, pool, saved, grad):
    def by(argument):
        def default(images, kernel, bias, argmax, grad):
            arguments = (images, kernel, bias)
            f = functools.partial(_in_turn, padding=padding, pool=pool)
            return jax.vjp(f, *arguments)[1](grad)[argument]

        return default

    def by_images(images, kernel, bias, argmax, grad):
        around = _around(kernel, padding)
        whole = native.conv_shape(images.shape, kernel.shape, padding)
        if not native.fits(whole, _flipped_shape(kernel), around):
            return by(0)(images, kernel, bias, argmax, grad)
        return native.pooled_image_gradient(
            _flipped(kernel), grad, argmax, images.shape, around, pool
        )

    def by_kernel(images, kernel, bias, argmax, grad):
        del bias
        return native.pooled_kernel_gradient(images, grad, argmax, kernel.shape, padding, pool)

    def by_bias(images, kernel, bias, argmax, grad):
        return jnp.where(argmax >= 0, grad, 0).sum((0, 1, 2))

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
    inner products are longer than the cache holds; of a few images at a time they are not.
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
