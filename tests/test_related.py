import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import models
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import googlenet, resnet, summary

# TensorFlow 2.21's oneDNN kernel of a convolution's weight gradient corrupts the heap; TensorFlow
# reads this when it is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _model(name, axis_name=None, **changes):
    config = config_lib.get_config().model
    config.update({"name": name, **changes})
    return models.create_model(config, axis_name=axis_name)


def _images(count, seed=0):
    images = np.random.default_rng(seed).uniform(size=(count, *IMAGE_SHAPE))
    return jnp.asarray(images, jnp.float32)


def _variables(model):
    """He-normal kernels drawn with NumPy: compiling an initialiser for each takes too long."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            array = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            array = np.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0)
        return jnp.asarray(array, leaf.dtype)

    return jax.tree.map_with_path(draw, summary.variable_shapes(model))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(model, variables, images):
    return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _train(model, variables, images):
    return model.apply(
        variables,
        images,
        train=True,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats", "aux_logits"],
    )


# What a published network loses and gains here: the input has one channel instead of three, the
# classifier 7 rows instead of 1000.
def _classifier(features):
    return 7 * (features + 1) - 1000 * (features + 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fully_cnn", 642_935),
        ("mini_xception", 58_423),
        # Caffe's, less two channels of conv1 and what fc6 no longer reads (2x2 maps, not 6x6).
        (
            "alexnet",
            60_965_224 - 2 * 96 * 11**2 - (6**2 - 2**2) * 256 * 4096 + _classifier(4096),
        ),
        (
            "caffenet",
            60_965_224 - 2 * 96 * 11**2 - (6**2 - 2**2) * 256 * 4096 + _classifier(4096),
        ),
        # Caffe's without its auxiliary heads, which are counted beside.
        ("googlenet", 6_998_552 - 2 * 64 * 7**2 + _classifier(1024) + 4_344_078),
        # Keras's, which has no bias before a normalisation in Xception, but does in ResNet-50.
        ("xception", 22_910_480 - 2 * 32 * 3**2 + _classifier(2048)),
        ("resnet50", 25_636_712 - 26_560 - 2 * 64 * 7**2 + _classifier(2048)),
        # As 11,173,962 with three channels and ten classes, without running statistics, is known.
        ("resnet18", 11_173_962 - 2 * 64 * 3**2 - 3 * 513 + 2 * 4800),
        # By hand, layer after layer: no count is published.
        (
            "gudi",
            26 * 64 + 1601 * 64 + 1025 * 128 + (12**2 * 128 + 1) * 3072 + 3073 * 7,
        ),
        (
            "fathallah",
            10 * 32 + 289 * 64 + 577 * 128 + 1153 * 128 + (6**2 * 128 + 1) * 256 + 257 * 7,
        ),
        (
            "pcnn",
            122 * 96 + (25 * 96 + 1) * 256 + (2**2 * 256 + 1) * 512 + 513 * 512 + 513 * 24 + 25 * 7,
        ),
    ],
)
def test_parameters_are_the_published_ones_but_for_the_two_ends(name, expected):
    total, _ = summary.parameter_counts(_model(name))
    assert total == expected
    assert f"{total:,} parameters" in re.sub(r"\s+", " ", str(models.MODELS[name].__doc__))


def test_trained_parameters():
    # Two of BatchNorm's four numbers a channel are trained.
    assert summary.parameter_counts(_model("mini_xception"))[1] == 56_951
    assert summary.parameter_counts(_model("fully_cnn"))[1] == 642_935 - 2 * (480 + 256)
    assert summary.parameter_counts(_model("resnet18"))[1] == 11_171_271
    assert summary.parameter_counts(_model("resnet50"))[1] == 23_569_223 - 2 * 26_560
    assert summary.parameter_counts(_model("xception"))[1] == 20_875_247 - (22_910_480 - 22_855_952)


def test_auxiliary_heads_have_the_originals_size_but_for_the_classes():
    rows = summary.layer_table(_model("googlenet"))
    heads = sum(row.parameters for row in rows if row.name.startswith("auxiliary"))
    inputs = 128 * (512 + 1) + 128 * (528 + 1)
    assert heads == inputs + 2 * (1024 * (2048 + 1) + 7 * (1024 + 1)) == 4_344_078


@pytest.mark.slow
def test_auxiliary_logits_are_stored_in_training_only():
    model = _model("googlenet")
    variables = summary.variable_shapes(model)
    images = jax.ShapeDtypeStruct((3, *IMAGE_SHAPE), jnp.float32)
    assert set(variables) == {"params"}
    _, new = jax.eval_shape(lambda v, x: _train(model, v, x), variables, images)
    assert {name: [a.shape for a in new["aux_logits"][name]] for name in new["aux_logits"]} == {
        "head1": [(3, 7)],
        "head2": [(3, 7)],
    }

    def evaluate(variables, images):
        return model.apply(variables, images, train=False, mutable=["aux_logits"])

    _, new = jax.eval_shape(evaluate, variables, images)
    assert not jax.tree.leaves(new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("fully_cnn", marks=pytest.mark.slow), "mini_xception"]
)
def test_batch_norm_sees_the_batch_in_training_and_not_in_evaluation(name):
    model, images = _model(name, dropout=0.0), _images(4)
    variables = _variables(model)
    other_images = images.at[2:].multiply(0.1)  # the neighbours of the first two images change
    among, new = _train(model, variables, images)
    among_others, _ = _train(model, variables, other_images)
    assert np.abs(among[:2] - among_others[:2]).max() > 1e-3
    for (path, old), moved in zip(
        jax.tree.leaves_with_path(variables["batch_stats"]),
        jax.tree.leaves(new["batch_stats"]),
        strict=True,
    ):
        assert np.abs(old - moved).max() > 0, jax.tree_util.keystr(path)

    variables |= {"batch_stats": new["batch_stats"]}
    evaluated = _evaluate(model, variables, images)
    evaluated_among_others = _evaluate(model, variables, other_images)
    np.testing.assert_allclose(evaluated[:2], evaluated_among_others[:2], rtol=1e-5, atol=1e-6)
    assert np.abs(evaluated[2:] - evaluated_among_others[2:]).max() > 1e-3
    assert np.abs(evaluated - among).max() > 1e-3


@pytest.mark.slow
def test_statistics_over_shards_are_those_of_the_global_batch():
    images = _images(4)
    variables = _variables(_model("mini_xception"))
    whole, new = _train(_model("mini_xception"), variables, images)
    model = _model("mini_xception", axis_name=BATCH_AXIS)

    def local(x):
        return _train(model, variables, x)

    halves = jnp.reshape(images, (2, 2, *IMAGE_SHAPE))
    shards, new_shards = jax.vmap(local, axis_name=BATCH_AXIS)(halves)
    np.testing.assert_allclose(jnp.reshape(shards, (4, 7)), whole, atol=1e-4)
    first = jax.tree.map(lambda x: x[0], new_shards["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        first,
        new["batch_stats"],
    )


def test_unknown_names_and_fields_are_refused():
    with pytest.raises(ValueError, match=r"'vgg'.*alexnet, arch01"):
        _model("vgg")
    with pytest.raises(ValueError, match="conv_layers is only for"):
        _model("resnet50", conv_layers=3)
    with pytest.raises(ValueError, match="needs"):
        _model("family", conv_layers=3)
    with pytest.raises(ValueError, match="hidden_layers is 3"):
        _model("family", conv_layers=3, hidden_layers=3)


# Against Keras on TensorFlow: the same random weights in both. An image's gradient shows every
# layer's, and the gradients of all weights are compared one by one.


def _compare_with_keras(apply, variables, keras_model, images, to_variables):
    """Compares evaluation, training mode, new running statistics and all gradients."""
    from keras_networks import gradients

    output = apply(variables, images, False)
    np.testing.assert_allclose(output, keras_model(np.asarray(images)), rtol=1e-3, atol=1e-4)
    weights = np.random.default_rng(3).normal(size=output.shape).astype(np.float32)
    expected, by_weight, by_images = gradients(keras_model, np.asarray(images), weights)

    def loss(params, images):
        output, new = apply(variables | {"params": params}, images, True)
        return jnp.sum(output * weights), (output, new)

    (_, (output, new)), (grads, image_grads) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        variables["params"], images
    )
    _assert_close(output, expected)
    _assert_close(image_grads, by_images)
    jax.tree.map(_assert_close, grads, to_variables(keras_model, by_weight)["params"])
    if "batch_stats" in new:
        jax.tree.map(_assert_close, new["batch_stats"], to_variables(keras_model)["batch_stats"])


def _assert_close(ours, theirs):
    """Compares arrays up to 0.1 % of their largest element."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max() + 1e-7)


def _normal(*shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("strides", [1, 2])
def test_residual_block_equals_kerass(strides):
    import keras_networks

    theirs = keras_networks.bottleneck(8, strides, in_features=16)
    keras_networks.randomize(theirs, seed=1)
    ours = resnet.Bottleneck(8, strides)

    def apply(variables, x, train):
        if train:
            return ours.apply(variables, x, train=True, mutable=["batch_stats"])
        return ours.apply(variables, x, train=False)

    _compare_with_keras(
        apply,
        keras_networks.to_variables(theirs),
        theirs,
        _normal(5, 12, 12, 16),
        keras_networks.to_variables,
    )


@pytest.mark.slow
def test_inception_block_equals_kerass():
    import keras_networks

    filters = (6, 8, 12, 3, 5, 4)
    theirs = keras_networks.inception(filters, in_features=10)
    keras_networks.randomize(theirs, seed=1)
    ours = googlenet.Inception(filters)

    def apply(variables, x, train):
        output = ours.apply({"params": variables["params"]}, x)
        return (output, {}) if train else output

    _compare_with_keras(
        apply,
        keras_networks.to_variables(theirs),
        theirs,
        _normal(5, 12, 12, 10),
        keras_networks.to_variables,
    )
