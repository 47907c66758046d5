"""A network asked about one image: what its prepared form gives is what the network gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fer_jax.apps import prepared
from fer_jax.models import MODELS
from fer_jax.models.layers import BatchNorm
from fer_jax.ops import native

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 1)).astype(np.uint8)


def log_probabilities(model, variables):
    apply = jax.jit(functools.partial(model.apply, train=False))
    return jax.nn.log_softmax(apply(variables, jnp.float32(IMAGE) / 255))


def trained(model):
    """What training would leave: no value as it was at the start, variances above zero."""
    init = jax.jit(functools.partial(model.init, train=False))
    rng = np.random.default_rng(1)

    def moved(path, x):
        by = 0.1 * rng.random(x.shape, np.float32)
        return x * (1 + by) if path[-1].key == "kernel" else x + by  # else deep networks overflow

    variables = init(jax.random.key(0), jnp.zeros((1, 48, 48, 1)))
    return jax.tree.map_with_path(moved, jax.device_get(variables))


@pytest.fixture(params=["library", "xla"])
def convolutions(request, monkeypatch):
    if request.param == "xla":
        monkeypatch.setattr(native, "_library", None)
    elif not native.load():
        pytest.skip("no C++ compiler here")
    return request.param


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize(
    "name",
    ["compact", "mini_xception", "arch03"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("fully_cnn", "alexnet", "xception", "resnet18")
    ],
)
def test_says_what_the_network_says(name):
    model = MODELS[name]()
    variables = trained(model)
    found = prepared.make_predict_one(model, variables)(IMAGE)
    np.testing.assert_allclose(found, log_probabilities(model, variables), rtol=1e-5, atol=1e-5)


class Normalised(nn.Module):
    """A normalisation behind a convolution of each kind, and one behind another layer."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(relu=True, name="norm0")(nn.Conv(16, (3, 3), name="narrow")(x), train=train)
        x = nn.Conv(32, (3, 3), use_bias=False, name="plain")(x)
        x = BatchNorm(relu=True, pool_name="pool1", name="norm1")(x, train=train)
        x = nn.Conv(32, (3, 3), padding="VALID", name="biased")(x)
        x = shortcut = BatchNorm(epsilon=0.1, name="norm2")(x, train=train)
        x = BatchNorm(name="norm3")(nn.relu(x), train=train)
        x = nn.Conv(32, (3, 3), name="alone")(x) + shortcut
        return nn.Dense(7, name="logits")(x.mean((1, 2)))


def test_a_normalisation_behind_a_convolution_is_part_of_it(convolutions):
    model = Normalised()
    variables = trained(model)
    predict_one = prepared.make_predict_one(model, variables)
    found = predict_one(IMAGE)
    np.testing.assert_allclose(found, log_probabilities(model, variables), rtol=1e-5, atol=1e-5)
    program = jax.jit(predict_one).lower(IMAGE).as_text()
    assert program.count("stablehlo.rsqrt") == 2  # behind `narrow`, and behind the ReLU
    if convolutions == "library":
        assert program.count("relu = true") == 1
        assert program.count("relu = false") == 2


class Layers(nn.Module):
    """One of each kind: of these `plain`, `valid` and `biased` alone can do with fewer products."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(16, (3, 3), name="narrow")(x)
        x = nn.Conv(16, (3, 3), use_bias=False, name="plain")(x)
        x = nn.Conv(32, (3, 3), padding="VALID", use_bias=False, name="valid")(x)
        x = nn.Conv(32, (3, 3), padding="SAME", name="biased")(x)
        x = nn.Conv(32, (3, 3), strides=(2, 2), name="strided")(x)
        x = nn.Conv(32, (3, 3), kernel_dilation=2, name="dilated")(x)
        x = nn.Conv(32, (3, 3), feature_group_count=2, name="grouped")(x)
        x = nn.Conv(32, (3, 3), padding=1, name="around")(x)
        return nn.Dense(7, name="logits")(nn.Conv(32, (1, 1), name="one")(x).mean((1, 2)))


def test_layers_of_other_kinds_are_left_to_themselves(convolutions):
    model = Layers()
    variables = trained(model)
    predict_one = prepared.make_predict_one(model, variables)
    found = predict_one(IMAGE)
    np.testing.assert_allclose(found, log_probabilities(model, variables), rtol=1e-5, atol=1e-5)
    program = jax.jit(predict_one).lower(IMAGE).as_text()
    products, calls = (0, 3) if convolutions == "library" else (3, 0)
    assert program.count("stablehlo.dot_general") - 1 == products  # and the classes' own
    assert program.count("@fer_jax_transformed_convolution") == calls
    assert program.count("stablehlo.convolution") == 6
