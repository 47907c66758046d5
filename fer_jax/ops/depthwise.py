"""Depthwise 3x3 convolution, one filter per channel, that is fast on a CPU.

XLA's CPU backend runs grouped convolutions by a naive loop; other platforms keep XLA's own. On a
CPU it is one of :mod:`fer_jax.ops.native`'s operations. Where those are not there, it is a sum of
nine shifted images, each times one weight per channel, and so is the images' gradient; the kernel's
gradient is summed image by image, so that it stays in cache.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.native import vary_like

_OFFSETS = [(i, j) for i in range(3) for j in range(3)]


def depthwise_conv(lhs: jax.Array, rhs: jax.Array, window_strides, padding, **options) -> jax.Array:
    """Convolves each channel with its own 3x3 filter; a `conv_general_dilated` for `flax.linen`.

    Args:
      lhs: `[batch, height, width, channels]` float, the images.
      rhs: `[3, 3, 1, channels]` float, the kernel.
      window_strides: (1, 1).
      padding: "SAME".
      **options: what else `lax.conv_general_dilated` takes.

    Returns:
      `[batch, height, width, channels]`.

    Raises:
      ValueError: for a kernel, stride or padding other than these.
    """
    if rhs.shape != (3, 3, 1, lhs.shape[-1]) or tuple(window_strides) != (1, 1):
        raise ValueError(
            f"kernel {rhs.shape} with strides {tuple(window_strides)} on {lhs.shape[-1]} channels; "
            f"a depthwise convolution needs (3, 3, 1, {lhs.shape[-1]}) and (1, 1)"
        )
    if padding != "SAME":
        raise ValueError(f"padding is {padding!r}; it must be 'SAME'")
    if not lhs.dtype == rhs.dtype == jnp.float32:  # sums of lower precision are XLA's matter
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    # Made varying out here, the kernel's gradient is summed over devices by this cast's transpose.
    return _conv(vary_like(lhs, rhs), vary_like(rhs, lhs))


def _xla(images, kernel):
    return lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def _shifted(images, kernel):
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        padded[:, i : i + height, j : j + width] * kernel[None, None, i, j] for i, j in _OFFSETS
    ]
    return sum(parts[1:], start=parts[0])


@jax.custom_vjp
def _conv(images, kernel):
    return lax.platform_dependent(images, kernel, cpu=_cpu, default=_xla)


def _cpu(images, kernel):
    in_library = native.fits_depthwise(images.shape)
    return native.depthwise(images, kernel) if in_library else _shifted(images, kernel)


def _forward(images, kernel):
    return _conv(images, kernel), (images, kernel)


def _backward(saved, grad):
    def xla(images, kernel, grad):
        return jax.vjp(_xla, images, kernel)[1](grad)

    def cpu(images, kernel, grad):
        in_library = native.fits_depthwise(images.shape)
        by_kernel = native.depthwise_kernel_gradient if in_library else _kernel_gradient
        return _cpu(grad, kernel[::-1, ::-1]), by_kernel(images, grad)

    return lax.platform_dependent(*saved, grad, cpu=cpu, default=xla)


_conv.defvjp(_forward, _backward)


def _kernel_gradient(images, grad):
    """Sums image times gradient at each of the nine offsets, one image after another."""
    height, width, channels = grad.shape[1:]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add(total, image_and_grad):
        image, grad = image_and_grad
        products = [
            jnp.sum(image[i : i + height, j : j + width] * grad, axis=0) for i, j in _OFFSETS
        ]
        return total + jnp.stack(products), None

    start = vary_like(jnp.zeros((9, width, channels), grad.dtype), grad)
    total, _ = lax.scan(add, start, (padded, grad))
    return jnp.sum(total, axis=1).reshape(3, 3, 1, channels)
