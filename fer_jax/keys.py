"""Where every random number of a run comes from: one key per use, all from the run's seed."""

import jax

_ORDER, _INIT, _STEP, _MIX, _FLIP = range(5)


def _fold(seed: jax.Array, use: int, count: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), count)


def order_key(seed: jax.Array, epoch: jax.Array) -> jax.Array:
    """The key of an epoch's order; seed `[]` uint32, epoch `[]` int32 counted from 0."""
    return _fold(seed, _ORDER, epoch)


def init_key(seed: jax.Array) -> jax.Array:
    """The key of the initial parameters; seed `[]` uint32."""
    return _fold(seed, _INIT, 0)


def step_keys(seed: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of a step's augmentation and of its dropout; seed `[]` uint32, step `[]` int32."""
    augment, dropout = jax.random.split(_fold(seed, _STEP, step))
    return augment, dropout


def mix_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of how a step mixes pairs of images; seed `[]` uint32, step `[]` int32."""
    return _fold(seed, _MIX, step)


def flip_key(seed: jax.Array) -> jax.Array:
    """The key of which images an alternating flip mirrors first; seed `[]` uint32."""
    return _fold(seed, _FLIP, 0)
