import json
import shutil
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy

from fer_jax import config as config_lib
from fer_jax import seal
from fer_jax.apps.load import load, load_network
from fer_jax.errors import WeightsError
from fer_jax.labels import CLASSES, IMAGE_SHAPE
from fer_jax.models import create_model, summary
from fer_jax.weights import store


def _config(name="mini_xception", **changes):
    config = config_lib.get_config().model
    config.update({"name": name, **changes})
    return config


def _variables(config, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    shapes = summary.variable_shapes(create_model(config, classes))
    return jax.tree.map(lambda s: rng.uniform(0.5, 1, s.shape).astype(np.float32), shapes)


@pytest.fixture
def saved(tmp_path):
    """A folder with a network in it."""
    store.save(tmp_path / "net", _variables(_config()), _config(), CLASSES, {"seed": 3})
    return tmp_path / "net"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", store.ARRAYS])
def test_what_is_loaded_is_what_was_saved(saved, part):
    model, variables, metadata = store.load(saved / part)
    assert model == create_model(_config())
    jax.tree.map(np.testing.assert_array_equal, variables, _variables(_config()))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert metadata["classes"] == list(CLASSES)
    assert metadata["model"] == _config().to_dict()
    assert metadata["input"]["shape"] == [48, 48, 1]
    assert metadata["record"] == {"seed": 3}
    assert metadata["parameters"] == 58_423
    assert metadata == json.loads((saved / store.METADATA).read_text(encoding="utf-8"))
    logits = model.apply(variables, np.zeros((2, *IMAGE_SHAPE), np.float32), train=False)
    assert logits.shape == (2, 7)


def test_the_networks_own_fields_and_other_classes_come_back(tmp_path):
    config = _config("family", conv_layers=3, hidden_layers=0)
    store.save(tmp_path, _variables(config, 2), config, ("glad", "sad"))
    model, variables, metadata = store.load(tmp_path)
    assert (model.conv_layers, model.num_classes) == (3, 2)
    assert variables["params"]["logits"]["bias"].shape == (2,)
    assert metadata["record"] is None


def test_the_same_network_gives_the_same_bytes(saved, tmp_path):
    store.save(tmp_path / "again", _variables(_config()), _config(), CLASSES, {"seed": 3})
    for name in (store.ARRAYS, store.METADATA):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_half_as_large_is_named(tmp_path):
    variables = _variables(_config())
    name, other, *_ = store.kernels(variables)
    metadata = store.save(tmp_path / "net", variables, _config(), CLASSES, half=[name])
    assert metadata["kernels"] == "float16 and float32"
    arrays = safetensors.numpy.load_file(tmp_path / "net" / store.ARRAYS)
    assert (arrays[name].dtype, arrays[other].dtype) == (np.float16, np.float32)
    assert arrays[name].size >= arrays[other].size > arrays[store.kernels(variables)[-1]].size
    loaded = store.load(tmp_path / "net")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, store.as_stored(variables, [name]))


def test_half_a_files_kernels_are_close_and_the_rest_is_exact(saved, tmp_path):
    variables = _variables(_config())
    kernels = store.kernels(variables)
    metadata = store.save(tmp_path / "half", variables, _config(), CLASSES, half=kernels)
    assert metadata["kernels"] == "float16"
    sizes = [(folder / store.ARRAYS).stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.6 * sizes[1]
    _, loaded, _ = store.load(tmp_path / "half")
    jax.tree.map(np.testing.assert_array_equal, loaded["batch_stats"], variables["batch_stats"])
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(variables), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0 if theirs.ndim == 1 else 2**-11)


def test_a_fingerprint_is_of_the_weights_whatever_they_are_called(saved, tmp_path):
    found = load(saved).fingerprint
    assert found == store.sha256(_variables(_config()))[:8]
    assert len(found) == 8
    assert load(saved / store.ARRAYS).fingerprint == found
    variables = _variables(_config())
    kernels = store.kernels(variables)
    others = [store.as_stored(variables, half=kernels), _variables(_config(), seed=1)]
    for other in others:
        store.save(tmp_path / "other" / "net", other, _config(), CLASSES)
        assert load(tmp_path / "other" / "net").fingerprint == store.sha256(other)[:8] != found
    card = store.save(tmp_path / "half", variables, _config(), CLASSES, half=kernels)
    assert load(tmp_path / "half").fingerprint == card["sha256"][:8]


def test_only_shipped_weights_have_a_licence(saved, monkeypatch):
    assert "licence" not in load_network(saved).metadata
    monkeypatch.setattr("fer_jax.apps.load._SHIPPED", (saved.parent.resolve(),))
    for path in ("net", saved, saved / store.ARRAYS):
        assert load_network(path).metadata["licence"] == "MIT"


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["conv2d_1"], r"1 layers of kind conv2d \(conv2d_1\); expected 10, as fully_cnn has"),
        (["separable_conv2d_1", "dense"], r"the layer dense; expected .* of mini_xception"),
    ],
)
def test_a_damaged_keras_file_is_refused_as_the_network_that_it_is(tmp_path, layers, said):
    path = tmp_path / "net.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = layers
        for layer in layers:
            file.create_group(layer).attrs["weight_names"] = ["kernel:0"]
            file[layer]["kernel:0"] = np.zeros((3, 3, 1, 8), np.float32)
    with pytest.raises(WeightsError, match=said):
        load_network(path)


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    variables = _variables(_config())
    variables["params"]["conv1"]["kernel"] *= np.float32(1e6)
    store.save(tmp_path / "whole", variables, _config(), CLASSES)
    with pytest.raises(WeightsError, match="conv1/kernel is not finite in float16"):
        store.save(tmp_path / "half", variables, _config(), CLASSES, half=store.kernels(variables))
    assert not (tmp_path / "half").exists()


def test_variables_of_another_network_are_not_saved(tmp_path):
    with pytest.raises(WeightsError, match=r"another network than Architecture02: it lacks"):
        store.save(tmp_path, _variables(_config()), _config("arch02"), CLASSES)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_named(saved, share):
    file = saved / store.ARRAYS
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"model\.safetensors is (no safetensors file|empty)"):
        store.load(saved)


def test_any_bit_flipped_in_the_arrays_is_found(saved):
    file = saved / store.ARRAYS
    whole = file.read_bytes()
    first = len(whole) - 4 * 58_423
    for place in np.random.default_rng(0).integers(first, len(whole), 20):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
            store.load(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<html><body>404</body></html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "no safetensors file"),
        (safetensors.numpy.save({"x": np.zeros(3)}), "this project did not write it"),
        (
            safetensors.numpy.save({"x": np.zeros(3)}, {"fer_jax": "{"}),
            "metadata is not what was saved",
        ),
        (
            safetensors.numpy.save({"x": np.zeros(3)}, {"fer_jax": '{"format": 9}'}),
            "of format 9; this version reads format 1",
        ),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(saved, content, message):
    (saved / store.ARRAYS).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"model\.safetensors is .*{message}|{message}"):
        store.load(saved)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.safetensors does not exist"):
        store.load(tmp_path)
    with pytest.raises(WeightsError, match=r"none\.safetensors does not exist"):
        store.load(tmp_path / "none.safetensors")


def test_files_that_were_exchanged_are_found(saved, tmp_path):
    other = tmp_path / "other"
    store.save(other, _variables(_config(), seed=1), _config(), CLASSES)
    shutil.copy(other / store.ARRAYS, saved / store.ARRAYS)
    with pytest.raises(WeightsError, match=r"is not the file that .*metadata\.json describes"):
        store.load(saved)
    store.load(saved / store.ARRAYS)  # a file by itself says what it is


def test_metadata_that_was_changed_on_one_side_is_found(saved):
    _rewrite(saved / store.ARRAYS, lambda metadata: metadata["classes"].reverse())
    with pytest.raises(WeightsError, match=r"is not the file that .*metadata\.json describes"):
        store.load(saved)


def _rewrite(file, change):
    """Changes the metadata within a file of arrays as if it had been saved so."""
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = json.loads(opened.metadata()["fer_jax"])
    del metadata[seal.KEY]
    change(metadata)
    arrays = safetensors.numpy.load_file(file)
    text = json.dumps(seal.add(metadata))
    file.write_bytes(safetensors.numpy.save(arrays, {"fer_jax": text}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "arch02"}, "of another network than Architecture02: it lacks params/conv1/bias"),
        ({"name": "vgg"}, "cannot be created: config.model.name is 'vgg'"),
        ({"deeper": 3}, "a network that this version does not know"),
    ],
)
def test_a_network_that_the_arrays_do_not_fit_is_named(saved, fields, message):
    file = saved / store.ARRAYS
    _rewrite(file, lambda metadata: metadata["model"].update(fields))
    with pytest.raises(WeightsError, match=message):
        store.load(file)


def test_another_number_of_classes_is_named(saved):
    file = saved / store.ARRAYS
    _rewrite(file, lambda metadata: metadata["classes"].pop())
    with pytest.raises(WeightsError, match=r"logits/bias is \(7,\), not \(6,\)"):
        store.load(file)


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    code = (
        "import sys, fer_jax.weights.store\n"
        "print([m for m in ('tensorflow', 'orbax', 'h5py', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
