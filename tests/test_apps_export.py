import io
import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from jax.sharding import Mesh
from onnx import numpy_helper

from fer_jax import config as config_lib
from fer_jax.apps import cli, stablehlo
from fer_jax.apps import onnx as onnx_export
from fer_jax.data import drawn
from fer_jax.errors import ExtraError, WeightsError
from fer_jax.labels import CLASSES, IMAGE_SHAPE
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import MODELS, create_model, summary
from fer_jax.predict import make_predict
from fer_jax.weights import store

FAST = ("arch03", "pcnn", "tiny")
NETWORKS = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MODELS]
# Sums with shortcuts grow from block to block: variance of kernels times their inputs.
GAINS = dict.fromkeys(("mini_xception", "resnet18", "resnet50", "xception"), 1.0)
METADATA = {"classes": list(CLASSES), "sha256": "0" * 64, "model": {"name": "any"}}
COMPACT = {"width": 16, "residual": True, "squeeze_excitation": True, "blur_pool": True}


def _model(name, **changes):
    config = config_lib.get_config().model
    if name == "family":
        changes = {"conv_layers": 3, "hidden_layers": 1} | changes
    config.update({"name": name, **changes})
    return create_model(config)


def _images(count):
    """Returns faces, noise, and what is all of one grey: `[count, 48, 48]` uint8."""
    labels = (np.arange(count // 2) % 7).astype(np.uint8)
    faces = drawn.draw_faces(labels, seed=1).reshape(-1, *IMAGE_SHAPE[:2])
    noise = np.random.default_rng(2).integers(0, 256, (count - len(faces), *IMAGE_SHAPE[:2]))
    images = np.concatenate([faces, noise.astype(np.uint8)])
    images[-1], images[-2] = 0, 255
    return images


def _variables(model, gain=2.0):
    """Weights drawn at random, `gain` the variance of a kernel times the number of its inputs."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            array = rng.normal(0, np.sqrt(gain / np.prod(leaf.shape[:-1])), leaf.shape)
        else:
            low, high = (0.8, 1.2) if name in ("scale", "var") else (-0.2, 0.2)
            array = rng.uniform(low, high, leaf.shape)
        return array.astype(np.float32)

    return jax.tree.map_with_path(draw, summary.variable_shapes(model))


def _predict(model, variables, images):
    """What JAX gives: log-probabilities `[n, classes]`."""
    mesh = Mesh(np.asarray(jax.devices()[:1]), (BATCH_AXIS,))
    return make_predict(model, mesh, 100)(variables, images[..., None])


def _session(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def _run(session, images):
    """Returns log-probabilities, from the logits, and probabilities."""
    probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
    return np.asarray(jax.nn.log_softmax(logits)), probabilities


def _assert_same(ours, theirs):
    """Log-probabilities agree to 1e-4, and classes but for ties."""
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    second, first = np.sort(ours)[:, -2:].T
    clear = first - second > 2e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(theirs.argmax(-1)[clear], ours.argmax(-1)[clear])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_in_onnx_runtime_what_it_gives_in_jax(name):
    model = _model(name)
    variables = _variables(model, GAINS.get(name, 2.0))
    data = onnx_export.export(model, variables, METADATA)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert len(data) <= 4 * parameters + 20_000
    operators = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert "BatchNormalization" not in operators
    images = _images(1000)
    ours = _predict(model, variables, images)
    assert np.ptp(ours, axis=0).min() > 0.01  # images are told apart
    theirs, probabilities = _run(_session(data), images)
    _assert_same(ours, theirs)
    np.testing.assert_allclose(probabilities, np.exp(ours), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arch03", "compact"])
def test_an_image_gives_the_same_whatever_else_is_in_the_batch(name):
    model = _model(name)
    session = _session(onnx_export.export(model, _variables(model), METADATA))
    images = _images(256)
    whole, _ = _run(session, images)
    order = np.random.default_rng(0).permutation(256)
    np.testing.assert_allclose(_run(session, images[order])[0], whole[order], rtol=0, atol=1e-4)
    for size in (1, 3):
        part, probabilities = _run(session, images[:size])
        np.testing.assert_allclose(part, whole[:size], rtol=0, atol=1e-4)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_all_that_compact_can_be_made_of_is_translated():
    model = _model("compact", **COMPACT)
    variables, images = _variables(model), _images(100)
    session = _session(onnx_export.export(model, variables, METADATA))
    _assert_same(_predict(model, variables, images), _run(session, images)[0])


def _check_stored(name, kernels, bytes_each, atol):
    """Checks size, metadata and results of a file with smaller kernels, and returns it."""
    model = _model(name)
    variables, images = _variables(model), _images(200)
    data = onnx_export.export(model, variables, METADATA, kernels=kernels)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert len(data) <= bytes_each * parameters + 20_000
    file = onnx.load_from_string(data)
    assert {p.key: p.value for p in file.metadata_props}["kernels"] == kernels
    ours = _predict(model, variables, images)
    theirs, _ = _run(_session(data), images)
    assert 0 < np.abs(theirs - ours).max() < atol
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arch02", "compact"])
def test_kernels_as_int8_are_a_quarter_of_the_size_and_nearly_the_same(name):
    file = _check_stored(name, "int8", bytes_each=1.1, atol=0.1)
    of = {constant.name: numpy_helper.to_array(constant) for constant in file.graph.initializer}
    scaled = [node for node in file.graph.node if node.op_type == "DequantizeLinear"]
    assert scaled
    for node in scaled:
        kernel, scale = (of[name] for name in node.input)
        axis = node.attribute[0].i
        assert kernel.dtype == np.int8
        assert scale.shape == (kernel.shape[axis],)
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        largest = np.abs(kernel.astype(int)).max(axis=others)
        assert (largest == 127).all()


@pytest.mark.parametrize("name", ["arch02", "compact"])
def test_kernels_as_float16_are_half_the_size_and_the_same_to_their_rounding(name):
    _check_stored(name, "float16", bytes_each=2.1, atol=0.01)


def test_a_kernel_beyond_float16_is_refused():
    model = _model("arch02")
    variables = jax.tree.map(lambda leaf: leaf * np.float32(1e6), _variables(model))
    with pytest.raises(WeightsError, match="beyond float16"):
        onnx_export.export(model, variables, METADATA, kernels="float16")


def test_a_network_trained_in_bfloat16_is_written_in_float32():
    model = _model("arch02").clone(dtype=jnp.bfloat16)
    variables, images = _variables(model), _images(20)
    theirs, _ = _run(_session(onnx_export.export(model, variables, METADATA)), images)
    _assert_same(_predict(_model("arch02"), variables, images), theirs)


def test_what_a_browser_computes_is_little_more_than_convolutions():
    model = _model("compact")
    data = onnx_export.export(model, _variables(model), METADATA)
    nodes = [node.op_type for node in onnx.load_from_string(data).graph.node]
    stages = ["Conv", "Relu", "Conv", "Relu", "MaxPool"] * 3 + ["Conv", "Relu"] * 2
    assert nodes == ["Reshape", "Cast", "Div", *stages, "ReduceMean", "Gemm", "Softmax"]


def test_a_file_says_what_it_is():
    model = _model("arch03")
    metadata = METADATA | {"licence": "MIT", "record": {"seed": 3}, "kernels": "float16"}
    metadata |= {"preprocessing": "pixels / 255", "checksum": "1" * 64}
    data = onnx_export.export(model, _variables(model), metadata)
    file = onnx.load_from_string(data)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", onnx_export.OPSET)]
    session = _session(data)
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["n", 48, 48])
    outputs = [(o.name, o.type, o.shape) for o in session.get_outputs()]
    assert outputs == [(name, "tensor(float)", ["n", 7]) for name in ("probabilities", "logits")]
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(CLASSES)
    assert properties["sha256"] == "0" * 64
    assert properties["licence"] == "MIT"
    assert json.loads(properties["record"]) == {"seed": 3}
    assert "softmax" in properties["output"]
    assert properties["kernels"] == "float32"
    assert not {"preprocessing", "checksum"} & properties.keys()
    assert "uint8 [n, 48, 48]" in properties["input"]


def test_the_same_network_gives_the_same_bytes():
    model = _model("arch03")
    variables = _variables(model)
    first, second = (onnx_export.export(model, variables, METADATA) for _ in range(2))
    assert first == second


class Function(nn.Module):
    """A network that computes what it is told, on `[n, 48, 48, 1]`."""

    function: object

    @nn.compact
    def __call__(self, images, *, train):
        x = self.function(2 * images - 0.5)
        return nn.Dense(7)(x.reshape(x.shape[0], -1))


def _logits(function, images):
    model = Function(function)
    variables = _variables(model)
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    ours = apply(images[..., None].astype(np.float32) / 255)
    theirs = _session(onnx_export.export(model, variables, METADATA)).run(
        ["logits"], {"images": images}
    )[0]
    return np.asarray(ours), theirs


@pytest.mark.parametrize(
    "function",
    [
        jnp.abs,
        jnp.tanh,
        jnp.square,
        jnp.negative,
        jax.lax.erf,
        nn.sigmoid,
        nn.silu,
        lambda x: jnp.sqrt(jnp.abs(x)),
        lambda x: jnp.minimum(x, 0.5),
        lambda x: 1 - x,
        lambda x: 1 / (x + 2),
        lambda x: 0.1 * x + 3,
        lambda x: jnp.maximum(x, x.swapaxes(1, 2)),
        lambda x: x - x.mean(axis=(1, 2), keepdims=True),
        lambda x: x * jnp.arange(48.0)[None, :, None, None],
        lambda x: jax.lax.slice_in_dim(x.reshape(-1, 24, 2, 48), 1, 20, 3, 1),
        lambda x: jax.lax.slice_in_dim(x.transpose(0, 2, 1, 3), 3, 10, axis=1),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2.0),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), mode="edge"),
        lambda x: jnp.einsum("nhwc,hk->nwkc", x, jnp.eye(48, 5, 1) + 1),
        lambda x: jnp.einsum("kh,nhwc->nkwc", jnp.eye(5, 48, 1) + 1, x),
        lambda x: jax.image.resize(x, (x.shape[0], 30, 60, 1), "bilinear"),
        lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
        lambda x: nn.max_pool(x, (2, 3), (1, 2), "SAME"),
        lambda x: jnp.concatenate(jnp.split(x, [7, 20], axis=1)[::-1], axis=1),
    ],
)
def test_operations_do_in_onnx_what_they_do_in_jax(function):
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = _logits(function, _images(5))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jnp.sin, "the operation `sin`"),
        (lambda x: jnp.square(x.squeeze(-1)) @ x.squeeze(-1), "product"),
        (lambda x: jax.lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]), "between"),
        (lambda x: jnp.concatenate([x, jnp.ones_like(x)], axis=1), "a constant for each image"),
    ],
)
def test_what_cannot_be_translated_is_named(function, message):
    with pytest.raises(WeightsError, match=message):
        _logits(function, _images(2))


def test_weights_that_are_not_finite_are_refused():
    model = _model("arch03")
    variables = _variables(model)
    variables["params"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(WeightsError, match="Architecture03 are not all finite"):
        onnx_export.export(model, variables, METADATA)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = _model("arch03")
    with pytest.raises(ExtraError, match=r"pip install 'fer-jax\[export\]'"):
        onnx_export.export(model, {}, METADATA)


RELOAD = """
import sys, numpy as np, jax
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for count in (1, 3, 20):
    outputs = program.call(np.load(sys.argv[2])[:count])
    assert {k: v.shape for k, v in outputs.items()} == dict.fromkeys(outputs, (count, 7))
np.savez(sys.argv[3], **outputs)
assert "fer_jax" not in sys.modules
"""


@pytest.mark.slow
def test_stablehlo_gives_in_another_process_what_the_network_gives(tmp_path):
    model = _model("arch03")
    variables, images = _variables(model), _images(20)
    with zipfile.ZipFile(io.BytesIO(stablehlo.export(model, variables, METADATA))) as archive:
        metadata = json.loads(archive.read(stablehlo.METADATA))
        archive.extract(stablehlo.PROGRAM, tmp_path)
    assert metadata["classes"] == list(CLASSES)
    assert metadata["kernels"] == "float32"
    assert "uint8 [n, 48, 48]" in metadata["input"]
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in (stablehlo.PROGRAM, "images.npy", "outputs.npz")]
    subprocess.run([sys.executable, "-c", "import jax.export" + RELOAD, *files], check=True)
    outputs = np.load(files[-1])
    ours = _predict(model, variables, images)
    _assert_same(ours, np.asarray(jax.nn.log_softmax(outputs["logits"])))
    np.testing.assert_allclose(outputs["probabilities"], np.exp(ours), rtol=0, atol=1e-4)


@pytest.fixture
def saved(tmp_path):
    config = config_lib.get_config().model
    config.update({"name": "tiny"})
    folder = tmp_path / "net"
    store.save(folder, _variables(create_model(config)), config, CLASSES, {"seed": 3})
    return folder


def test_the_command_writes_a_file(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(saved)]) == 0
    assert "net.onnx: " in capsys.readouterr().out
    properties = _session((tmp_path / "net.onnx").read_bytes()).get_modelmeta().custom_metadata_map
    _, variables, metadata = store.load(saved)
    assert properties["sha256"] == metadata["sha256"] == store.sha256(variables)
    assert properties["source"] == "net"
    assert "licence" not in properties
    assert cli.main(["export", str(saved), "--format=stablehlo", "--out=other.zip"]) == 0
    assert zipfile.is_zipfile(tmp_path / "other.zip")


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_file_that_was_cut_off_gives_one_line_and_no_file(saved, tmp_path, capsys, keep):
    file = saved / store.ARRAYS
    file.write_bytes(file.read_bytes()[:keep])
    assert cli.main(["export", str(saved), f"--out={tmp_path / 'net.onnx'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error
    assert not (tmp_path / "net.onnx").exists()
