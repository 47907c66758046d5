"""Mixup and cutmix as properties, and against NumPy written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.config import get_config
from fer_jax.data import mix
from fer_jax.errors import ConfigError

SIDE = 48
seeds = st.integers(0, 2**31 - 1)
alphas = st.sampled_from([(1.0, 0.0), (0.2, 0.0), (0.0, 1.0), (0.4, 2.0)])
properties = settings(max_examples=15, deadline=None)


def train_config(mixup, cutmix):
    config = get_config().train
    config.mixup, config.cutmix = mixup, cutmix
    return config


def example(seed, batch=8):
    keys = jax.random.split(jax.random.key(seed), 3)
    images = jax.random.uniform(keys[0], (batch, SIDE, SIDE, 1))
    targets = jax.nn.softmax(jax.random.normal(keys[1], (batch, 7)))
    return jax.random.split(keys[2], batch // 2), images, targets


@functools.cache
def mixer(alphas_):
    config = train_config(*alphas_)

    @jax.jit
    def run(keys, images, targets):
        images, own = mix.mix(keys, images, config)
        return images, mix.blend(targets, own[:, None])

    return run


def mixed(alphas_, keys, images, targets):
    return mixer(alphas_)(keys, images, targets)


@pytest.mark.slow
@given(seed=seeds, alphas_=alphas)
@properties
def test_a_pair_is_shared_out_and_nothing_else_is_touched(seed, alphas_):
    keys, images, targets = example(seed)
    new_images, new_targets = mixed(alphas_, keys, images, targets)
    assert new_images.dtype == images.dtype
    assert new_images.min() >= 0
    assert new_images.max() <= 1
    np.testing.assert_allclose(new_targets.sum(axis=1), 1, atol=1e-6)
    for before, after in ((images, new_images), (targets, new_targets)):
        # What one of a pair gives away, the other gets.
        pairs = [np.asarray(x).reshape(4, 2, -1).sum(axis=1) for x in (before, after)]
        np.testing.assert_allclose(*pairs, atol=1e-5)


@pytest.mark.slow
@given(seed=seeds, alphas_=alphas, order=st.permutations(range(4)))
@properties
def test_a_pair_depends_on_its_own_key_and_images_alone(seed, alphas_, order):
    keys, images, targets = example(seed)
    there = mixed(alphas_, keys, images, targets)
    order = np.array(order)
    places = (2 * order[:, None] + np.arange(2)).ravel()
    moved = mixed(alphas_, keys[order], images[places], targets[places])
    for a, b in zip(moved, there, strict=True):
        np.testing.assert_array_equal(a, b[places])


def mix_in_numpy(images, targets, shares):
    """Mixes pair by pair and pixel by pixel; shares `[pairs, 48, 48]`."""
    new_images, new_targets = np.zeros_like(images), np.zeros_like(targets)
    for pair, share in enumerate(shares):
        for own, other in ((2 * pair, 2 * pair + 1), (2 * pair + 1, 2 * pair)):
            for y in range(SIDE):
                for x in range(SIDE):
                    s = share[y, x]
                    new_images[own, y, x] = s * images[own, y, x] + (1 - s) * images[other, y, x]
            s = share.sum() / SIDE**2
            new_targets[own] = s * targets[own] + (1 - s) * targets[other]
    return new_images, new_targets


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_against_numpy_pixel_by_pixel(kind):
    keys, images, targets = example(3, batch=4)
    parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    if kind == "mixup":
        shares = jax.vmap(lambda k: jnp.full((SIDE, SIDE), mix.mixup_share(k, 0.4)))(parts[:, 1])
    else:
        shares = jax.vmap(lambda k: mix.cutmix_mask(k, 0.4, SIDE, SIDE))(parts[:, 2])
    expected = mix_in_numpy(*map(np.asarray, (images, targets, shares)))
    found = mixed((0.4, 0.0) if kind == "mixup" else (0.0, 0.4), keys, images, targets)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_mixups_share_has_the_moments_of_its_distribution():
    keys = jax.random.split(jax.random.key(0), 4000)
    for alpha in (0.2, 1.0, 4.0):
        shares = np.asarray(jax.jit(jax.vmap(lambda k, a=alpha: mix.mixup_share(k, a)))(keys))
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / len(keys))
        assert shares.var() == pytest.approx(variance, rel=0.08)


@pytest.mark.slow
def test_what_cutmix_replaces_is_one_rectangle_of_any_size_anywhere():
    keys = jax.random.split(jax.random.key(0), 2000)
    masks = np.asarray(jax.jit(jax.vmap(lambda k: mix.cutmix_mask(k, 1.0, SIDE, SIDE)))(keys))
    assert set(np.unique(masks)) == {0.0, 1.0}
    replaced = masks == 0
    for mask in replaced[:200]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            assert mask.sum() == len(rows) * len(columns)
            assert len(rows) == rows[-1] - rows[0] + 1
            assert len(columns) == columns[-1] - columns[0] + 1
    assert replaced.mean((1, 2)).max() > 0.9
    assert replaced.mean((1, 2)).min() < 0.01
    assert replaced.any(0).all()
    # A side of the share s covers s - s^2 / 4 on average, cut off at the edges. Squared, with
    # s^2 uniform in [0, 1]:
    assert replaced.mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


@pytest.mark.slow
def test_with_both_half_of_the_pairs_take_each():
    keys, images, targets = example(0, batch=2000)
    out, _ = mixed((1.0, 1.0), keys, images[:, :4, :4], targets)
    own, other = images[:, :4, :4], mix.swap_pairs(images[:, :4, :4])
    whole = np.asarray(((out == own) | (out == other)).all((1, 2, 3)))
    assert abs(whole[::2].mean() - 0.5) < 0.08


def test_nothing_is_traced_where_both_are_off():
    keys, images, _ = example(0)
    found, own = mix.mix(keys, images, train_config(0.0, 0.0))
    assert found is images
    assert own is None


def test_a_share_that_parts_a_pair_is_refused():
    config = train_config(1.0, 0.0)
    mix.check_share(24, config)
    mix.check_share(3, train_config(0.0, 0.0))
    with pytest.raises(ConfigError, match="puts 3 images on each device"):
        mix.check_share(3, config)
