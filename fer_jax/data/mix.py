"""Mixing pairs of examples: mixup and cutmix, pure functions of a key, images and targets.

The partner of the example in place 2k of the global batch is the one in place 2k + 1. Places are
random because an epoch's order is, and a pair lies on one device because shares are even: how many
devices there are changes nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fer_jax.errors import ConfigError


def check_share(share: int, config: Any) -> None:
    """Checks that no pair is parted.

    Args:
      share: images of a batch on each device.
      config: `config.train`.

    Raises:
      ConfigError: if the share is odd and `mixup` or `cutmix` is on.
    """
    if (config.mixup or config.cutmix) and share % 2:
        raise ConfigError(
            f"config.train.batch_size {config.batch_size} puts {share} images on each device, but "
            "config.train.mixup and config.train.cutmix pair them: choose a batch size that is a "
            "multiple of twice the devices, or another config.train.devices"
        )


def swap_pairs(x: jax.Array) -> jax.Array:
    """Swaps the elements in places 2k and 2k + 1 of `x`, `[batch, ...]`, `batch` even."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mix(keys: jax.Array, images: jax.Array, config: Any) -> tuple[jax.Array, jax.Array | None]:
    """Mixes each image with its partner, as `config.train.mixup` and `cutmix` say.

    With both, each pair takes one of the two at even chances. Both images of a pair get the same
    share and the same rectangle.

    Args:
      keys: `[batch / 2]` typed PRNG keys, one for each pair.
      images: `[batch, height, width, 1]` float in [0, 1], `batch` even.
      config: `config.train`; `mixup` and `cutmix` are the parameters of Beta distributions.

    Returns:
      Images; and `[batch]` float32 in [0, 1], the share of each that is still its own, which
      :func:`blend` mixes targets by. The images as they were and None if both are off.
    """
    if not (config.mixup or config.cutmix):
        return images, None
    draw = functools.partial(
        _draw_pair,
        height=images.shape[1],
        width=images.shape[2],
        mixup=config.mixup,
        cutmix=config.cutmix,
    )
    shares = jnp.repeat(jax.vmap(draw)(keys), 2, axis=0)
    return blend(images, shares[..., None]), shares.mean(axis=(1, 2))


def blend(x: jax.Array, share: jax.Array) -> jax.Array:
    """Returns `share * x + (1 - share) * partner`; what sums to one still does.

    Args:
      x: `[batch, ...]` float, `batch` even.
      share: `[batch, ...]` float in [0, 1], as many axes as `x`.
    """
    return share * x + (1.0 - share) * swap_pairs(x)


def _draw_pair(key: jax.Array, height: int, width: int, mixup: float, cutmix: float) -> jax.Array:
    """Draws the share of each pixel, `[height, width]` float32, that stays the example's own."""
    which_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    if not cutmix:
        return jnp.full((height, width), mixup_share(mixup_key, mixup))
    if not mixup:
        return cutmix_mask(cutmix_key, cutmix, height, width)
    return jnp.where(
        jax.random.bernoulli(which_key),
        mixup_share(mixup_key, mixup),
        cutmix_mask(cutmix_key, cutmix, height, width),
    )


def mixup_share(key: jax.Array, alpha: float) -> jax.Array:
    """Draws from Beta(alpha, alpha), Zhang et al. 2018, equation (1): `[]` float32 in [0, 1]."""
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def cutmix_mask(key: jax.Array, alpha: float, height: int, width: int) -> jax.Array:
    """Draws what stays of an image that gets a rectangle of another (Yun et al. 2019, section 3.1).

    The share that is replaced follows 1 - Beta(alpha, alpha), the rectangle has the image's aspect,
    its centre is uniform and what hangs over the edge is cut off.

    Args:
      key: typed PRNG key.
      alpha: of the Beta distribution.
      height: pixels.
      width: pixels.

    Returns:
      `[height, width]` float32: 0 in the rectangle, 1 elsewhere.
    """
    share_key, place_key = jax.random.split(key)
    side = jnp.sqrt(1.0 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    centre = jax.random.uniform(place_key, (2,), jnp.float32)

    def inside(length: int, centre: jax.Array) -> jax.Array:
        places = jnp.arange(length, dtype=jnp.float32) + 0.5
        return jnp.abs(places - centre * length) < side * length / 2

    rectangle = inside(height, centre[0])[:, None] & inside(width, centre[1])[None, :]
    return 1.0 - rectangle.astype(jnp.float32)
