import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import layers


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _dropout(x, rate, seed=0, axis_name=None):
    layer = layers.Dropout(rate, axis_name)
    return layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


class _FirstKey(nn.Module):
    """What a layer's first key is made from the one that `rngs` gives."""

    @nn.compact
    def __call__(self):
        return self.make_rng("dropout")


def test_dropout_masks_follow_from_the_key_and_the_place_in_the_batch():
    key = _FirstKey().apply({}, rngs={"dropout": jax.random.key(0)})
    masks = np.asarray(_dropout(jnp.ones((4, 50)), 0.5))
    for place, mask in enumerate(masks):
        keep = jax.random.bernoulli(jax.random.fold_in(key, place), 0.5, (50,))
        np.testing.assert_array_equal(mask, 2.0 * np.asarray(keep))
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(_dropout(jnp.ones((4, 50)), 0.5, seed=1), masks)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_dropout_masks_are_those_of_the_global_batch_on_any_number_of_devices(count):
    ones = jnp.ones((8, 50))
    sharded = jax.shard_map(
        functools.partial(_dropout, rate=0.5, axis_name=BATCH_AXIS),
        mesh=jax.make_mesh((count,), (BATCH_AXIS,), (jax.sharding.AxisType.Auto,)),
        in_specs=P(BATCH_AXIS),
        out_specs=P(BATCH_AXIS),
    )
    np.testing.assert_array_equal(sharded(ones), _dropout(ones, 0.5))


def test_dropout_drops_its_share_and_keeps_the_mean():
    dropped = np.asarray(_dropout(jnp.ones((64, 1000)), 0.2))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1.25)}
    assert np.mean(dropped == 0) == pytest.approx(0.2, abs=0.005)


def test_dropout_passes_through_in_evaluation():
    x = _normal(2, 3)
    np.testing.assert_array_equal(layers.Dropout(0.5).apply({}, x, train=False), x)


def _norm_variables(channels):
    return layers.BatchNorm().init(jax.random.key(0), jnp.ones((2, channels)), train=False)


def test_batch_norm_in_training_by_hand():
    x = 3 + 2 * _normal(4, 5, 5, 3)
    y, new = layers.BatchNorm().apply(_norm_variables(3), x, train=True, mutable=["batch_stats"])
    array = np.asarray(x, np.float64)
    mean, variance = array.mean((0, 1, 2)), array.var((0, 1, 2))  # biased, as in Keras
    expected = (array - mean[None, None, None]) / np.sqrt(variance + 1e-3)[None, None, None]
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.99 + 0.01 * variance, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_pool_behind_batch_norm_takes_the_largest_of_each_2x2_pixels(relu, train):
    x, variables = _normal(4, 6, 8, 16), _norm_variables(16)

    def norm(pool_name):
        layer = layers.BatchNorm(relu=relu, pool_name=pool_name)
        return layer.apply(variables, x, train=train, mutable=["batch_stats"])

    (whole, statistics), (pooled, same) = norm(None), norm("pool1")
    np.testing.assert_array_equal(pooled, whole.reshape(4, 3, 2, 4, 2, 16).max((2, 4)))
    jax.tree.map(np.testing.assert_array_equal, same, statistics)


def test_batch_norm_in_evaluation_uses_the_running_statistics():
    variables = _norm_variables(2)
    variables["batch_stats"] = {"mean": jnp.array([1.0, -1.0]), "var": jnp.array([4.0, 0.25])}
    y = layers.BatchNorm().apply(variables, jnp.array([[3.0, 0.0]]), train=False)
    np.testing.assert_allclose(y, [[2 / np.sqrt(4.001), 1 / np.sqrt(0.251)]], rtol=1e-6)


@pytest.mark.slow
def test_batch_norm_statistics_over_the_mesh_are_those_of_the_global_batch():
    variables, x = _norm_variables(3), _normal(4, 2, 2, 3)
    mesh = jax.make_mesh((1,), (BATCH_AXIS,), (jax.sharding.AxisType.Auto,))

    def local(x):  # two shards on one device, so that the test needs no second one
        norm = layers.BatchNorm(BATCH_AXIS)
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    halves = jnp.reshape(x, (2, 2, 2, 2, 3))
    y, new = jax.vmap(local, axis_name=BATCH_AXIS)(halves)
    alone, new_alone = layers.BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(jnp.reshape(y, x.shape), alone, atol=1e-6)
    for name in ("mean", "var"):
        both = new["batch_stats"][name]
        np.testing.assert_allclose(both[0], new_alone["batch_stats"][name], atol=1e-6)
        np.testing.assert_array_equal(both[0], both[1])

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=P(BATCH_AXIS), out_specs=(P(BATCH_AXIS), P())
    )
    np.testing.assert_allclose(sharded(x)[0], alone, atol=1e-6)


def test_local_response_norm_by_hand():
    x = 10 * _normal(2, 1, 1, 7)
    y = layers.LocalResponseNorm().apply({}, x)
    array = np.asarray(x, np.float64)
    for c in range(7):
        around = array[..., max(0, c - 2) : c + 3]
        expected = array[..., c] / (2 + 1e-4 * np.sum(around**2, axis=-1)) ** 0.75
        np.testing.assert_allclose(y[..., c], expected, rtol=1e-5)


def test_separable_conv_by_hand():
    x = _normal(1, 4, 4, 2)
    layer = layers.SeparableConv(3)
    variables = layer.init(jax.random.key(0), x)
    y = np.asarray(layer.apply(variables, x))
    depthwise = np.asarray(variables["params"]["depthwise"]["kernel"])  # [3, 3, 1, 2]
    pointwise = np.asarray(variables["params"]["pointwise"]["kernel"])  # [1, 1, 2, 3]
    padded = np.pad(np.asarray(x)[0], ((1, 1), (1, 1), (0, 0)))
    for i, j in ((0, 0), (1, 2), (3, 3)):
        filtered = np.sum(padded[i : i + 3, j : j + 3] * depthwise[:, :, 0], axis=(0, 1))
        np.testing.assert_allclose(y[0, i, j], filtered @ pointwise[0, 0], rtol=1e-4)


def test_resize_puts_pixel_centres_at_halves():
    # Output pixel i lies at (i + 0.5) * 3 / 4 - 0.5 of the input, held within its first and last.
    ramp = jnp.broadcast_to(jnp.arange(48.0)[None, :, None, None], (1, 48, 48, 1))
    y = layers.Resize(64).apply({}, ramp)
    assert y.shape == (1, 64, 64, 1)
    expected = np.clip((np.arange(64) + 0.5) * 0.75 - 0.5, 0, 47)
    np.testing.assert_allclose(y[0, :, 5, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(y[0, :, 60, 0], expected, rtol=1e-5)


def test_pools_by_hand():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    same = layers.MaxPool((3, 3), (2, 2), "SAME").apply({}, x)  # the padding is at the end
    np.testing.assert_array_equal(same[0, :, :, 0], [[10, 11], [14, 15]])
    valid = layers.MaxPool((3, 3), (2, 2)).apply({}, x)
    np.testing.assert_array_equal(valid[0, :, :, 0], [[10]])
    mean = layers.AvgPool((2, 2), (2, 2)).apply({}, x)
    np.testing.assert_array_equal(mean[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(layers.GlobalAvgPool().apply({}, x), [[7.5]])
    np.testing.assert_array_equal(layers.Flatten().apply({}, x), [np.arange(16)])


def test_blur_pool_by_hand():
    x = _normal(1, 6, 4, 2)
    y = layers.BlurPool().apply({}, x)
    assert y.shape == (1, 3, 2, 2)
    array = np.asarray(x, np.float64)[0]
    largest = np.max([array[i : i + 5, j : j + 3] for i in (0, 1) for j in (0, 1)], axis=0)
    padded = np.pad(largest, ((1, 1), (1, 1), (0, 0)), mode="edge")
    weights = np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16
    for i in range(3):
        for j in range(2):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            np.testing.assert_allclose(y[0, i, j], (window * weights).sum((0, 1)), rtol=1e-5)


def test_squeeze_excitation_by_hand():
    x = _normal(2, 3, 3, 16)
    layer = layers.SqueezeExcitation()
    variables = layer.init(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    assert params["squeeze"]["kernel"].shape == (16, 2)
    hidden = np.maximum(np.mean(x, axis=(1, 2)) @ params["squeeze"]["kernel"], 0)
    weights = 1 / (1 + np.exp(-hidden @ params["excite"]["kernel"]))
    expected = np.asarray(x) * weights[:, None, None]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [4, 16])
def test_dirac_kernels_hand_their_input_on(features):
    x = _normal(2, 5, 5, 8)
    conv = layers.Conv(features, (3, 3), use_bias=False, kernel_init=layers.dirac)
    variables = conv.init(jax.random.key(0), x)
    y = np.asarray(conv.apply(variables, x))
    copies = min(features, 8)
    np.testing.assert_allclose(y[..., :copies], x[..., :copies], rtol=1e-6)
    rest = np.asarray(variables["params"]["kernel"])[..., copies:]
    assert rest.size == 0 or 0.5 < rest.std() / np.sqrt(2 / (9 * 8)) < 1.5
