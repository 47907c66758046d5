"""A network asked about one image: what its prepared form gives is what the network gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fer_jax.apps import prepared
from fer_jax.models import MODELS
from fer_jax.ops import native

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 1)).astype(np.uint8)


def log_probabilities(model, variables):
    return jax.nn.log_softmax(model.apply(variables, jnp.float32(IMAGE) / 255, train=False))


def differing(variables):
    """What training would leave: no value as it was at the start, variances above zero."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.uniform(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture(params=["library", "xla"])
def convolutions(request, monkeypatch):
    if request.param == "xla":
        monkeypatch.setattr(native, "_library", None)
    elif not native.load():
        pytest.skip("no C++ compiler here")
    return request.param


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize("name", ["compact", "mini_xception", "arch03"])
def test_says_what_the_network_says(name):
    model = MODELS[name]()
    variables = differing(model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 1)), train=False))
    found = prepared.make_predict_one(model)(prepared.prepare(variables), IMAGE)
    np.testing.assert_allclose(found, log_probabilities(model, variables), rtol=1e-5, atol=1e-5)


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
    variables = differing(model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 1)), train=False))
    predict_one, ready = prepared.make_predict_one(model), prepared.prepare(variables)
    found = predict_one(ready, IMAGE)
    np.testing.assert_allclose(found, log_probabilities(model, variables), rtol=1e-5, atol=1e-5)
    program = jax.jit(predict_one).lower(ready, IMAGE).as_text()
    products, calls = (0, 3) if convolutions == "library" else (3, 0)
    assert program.count("stablehlo.dot_general") - 1 == products  # and the classes' own
    assert program.count("@fer_jax_transformed_convolution") == calls
    assert program.count("stablehlo.convolution") == 6
