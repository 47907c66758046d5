"""Batch normalisation whose gradient is written by hand, so that a step reads activations less."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.native import vary_like
from fer_jax.ops.pool import max_pool_2x2


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    axis_name: str | None = None,
    relu: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises a batch by its own statistics (Ioffe & Szegedy 2015, algorithm 1).

    Args:
      x: `[batch, ..., channels]` float32.
      scale: `[channels]` float32, the paper's gamma.
      bias: `[channels]` float32, its beta.
      epsilon: added to the variance.
      axis_name: mesh axis that the batch is sharded over in equal shares; None if it is whole.
      relu: whether ReLU follows.

    Returns:
      What became of `x`, and mean and variance of the global batch, `[channels]` float32 each.
      These two pass on no gradient.
    """
    scale, bias = vary_like(scale, x), vary_like(bias, x)
    return _batch_norm(x, scale, bias, epsilon, axis_name, relu)


def batch_norm_relu_max_pool(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """:func:`batch_norm` with ReLU and :func:`max_pool_2x2` in one.

    On a CPU what is normalised is in no array, nor is its gradient. Values and gradients are those
    of the two in turn.

    Args:
      x: `[batch, height, width, channels]` float32.
      scale: as there, like all that follow.
      bias: as there.
      epsilon: as there.
      axis_name: as there.

    Returns:
      What became of `x`, `[batch, height // 2, width // 2, channels]` float32; mean and variance as
      there.
    """
    if not native.fits_pooled_norm(x.shape):
        options = {"epsilon": epsilon, "axis_name": axis_name, "relu": True}
        out, mean, var = batch_norm(x, scale, bias, **options)
        return max_pool_2x2(out), mean, var
    scale, bias = vary_like(scale, x), vary_like(bias, x)
    return _pooled_norm(x, scale, bias, epsilon, axis_name)


def _moments(x, axis_name):
    """Returns mean and variance of each channel, over all axes but the last and all devices."""

    def xla(x):  # reads x once, as flax.linen.BatchNorm does
        mean, square = x.mean(_but_last(x)), jnp.square(x).mean(_but_last(x))
        return jnp.stack([mean, jnp.maximum(square - jnp.square(mean), 0.0)])

    if native.fits_norm(x.shape):
        mean, var = lax.platform_dependent(x, cpu=native.moments, default=xla)
    else:
        mean, var = xla(x)
    if axis_name is None:
        return mean, var
    # Chan et al. 1979, for equal shares: the variance within devices and that between them.
    whole = lax.pmean(mean, axis_name)
    return whole, lax.pmean(var + jnp.square(mean - whole), axis_name)


def _but_last(x):
    return tuple(range(x.ndim - 1))


def _normalise(x, mean, inverse):
    return (x - per_channel(x, mean)) * per_channel(x, inverse)


def _scale(x, scale, bias):
    return x * per_channel(x, scale) + per_channel(x, bias)


def _behind_relu(grad, normal, scale, bias):
    """The gradient where ReLU let through what is computed again here: faster than reading it."""
    return jnp.where(_scale(normal, scale, bias) > 0, grad, 0)


def per_channel(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """Shapes `[channels]` such that they meet the last axis of `x`."""
    return numbers.reshape((1,) * (x.ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon, axis_name, relu):
    mean, var = _moments(x, axis_name)
    out = _scale(_normalise(x, mean, lax.rsqrt(var + epsilon)), scale, bias)
    return (jax.nn.relu(out) if relu else out), mean, var


def _forward(x, scale, bias, epsilon, axis_name, relu):
    out, mean, var = _batch_norm(x, scale, bias, epsilon, axis_name, relu)
    return (out, mean, var), (x, scale, bias, mean, lax.rsqrt(var + epsilon))


def _backward(epsilon, axis_name, relu, saved, grads):
    del epsilon
    x, scale, bias, mean, inverse = saved

    def cpu(x, grad, *normalisation):
        return native.norm_gradient_sums(x, grad, jnp.stack(normalisation), relu=relu)

    arguments = (x, grads[0], mean, inverse, scale, bias)
    if native.fits_norm(x.shape):
        sums = lax.platform_dependent(
            *arguments, cpu=cpu, default=functools.partial(_sums, relu=relu)
        )
    else:
        sums = _sums(*arguments, relu=relu)
    images = _image_gradient(*arguments, means=_means(x, sums, axis_name), relu=relu)
    return images, sums[1], sums[0]


def _means(x, sums, axis_name):
    """Sums over the pixels here, by the number of pixels of the global batch, over all devices."""
    count = x.size // x.shape[-1]
    if axis_name is None:
        return sums / count
    return lax.psum(sums, axis_name) / (count * lax.axis_size(axis_name))


def _image_gradient(x, grad, mean, inverse, scale, bias, *, means, relu):
    normal = _normalise(x, mean, inverse)
    if relu:
        grad = _behind_relu(grad, normal, scale, bias)
    mean_grad, mean_product = (per_channel(x, m) for m in means)
    return (grad - mean_grad - normal * mean_product) * per_channel(x, inverse * scale)


def _sums(x, grad, mean, inverse, scale, bias, *, relu):
    normal = _normalise(x, mean, inverse)
    if relu:
        grad = _behind_relu(grad, normal, scale, bias)
    return jnp.stack([grad.sum(_but_last(x)), (grad * normal).sum(_but_last(x))])


_batch_norm.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pooled_norm(x, scale, bias, epsilon, axis_name):
    return _pooled_forward(x, scale, bias, epsilon, axis_name)[0]


def _pooled_forward(x, scale, bias, epsilon, axis_name):
    mean, var = _moments(x, axis_name)
    normalisation = jnp.stack([mean, lax.rsqrt(var + epsilon), scale, bias])

    def xla(x, normalisation):
        out = max_pool_2x2(_normal_relu(x, *normalisation))
        return [out, jnp.zeros_like(out, jnp.int8)]

    out, argmax = lax.platform_dependent(x, normalisation, cpu=native.pooled_norm, default=xla)
    return (out, mean, var), (x, argmax, normalisation)


def _normal_relu(x, mean, inverse, scale, bias):
    return jax.nn.relu(_scale(_normalise(x, mean, inverse), scale, bias))


def _pooled_backward(epsilon, axis_name, saved, grads):
    del epsilon
    x, argmax, normalisation = saved

    def unpooled(x, grad, normalisation):
        return jax.vjp(max_pool_2x2, _normal_relu(x, *normalisation))[1](grad)[0]

    def xla_sums(x, grad, argmax, normalisation):
        del argmax
        return _sums(x, unpooled(x, grad, normalisation), *normalisation, relu=True)

    def xla(x, grad, argmax, normalisation, means):
        del argmax
        grad = unpooled(x, grad, normalisation)
        return _image_gradient(x, grad, *normalisation, means=means, relu=True)

    arguments = (x, grads[0], argmax, normalisation)
    cpu_sums = native.pooled_norm_gradient_sums
    sums = lax.platform_dependent(*arguments, cpu=cpu_sums, default=xla_sums)
    means = _means(x, sums, axis_name)
    cpu = native.pooled_norm_gradient
    return lax.platform_dependent(*arguments, means, cpu=cpu, default=xla), sums[1], sums[0]


_pooled_norm.defvjp(_pooled_forward, _pooled_backward)
