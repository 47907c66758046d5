import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import loop, precision, steps, train
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.models import create_model
from fer_jax.ops import native

pytestmark = pytest.mark.usefixtures("standard_promotion")
needs_library = pytest.mark.skipif(not native.load(), reason="no C++ compiler here")


@pytest.fixture(params=[False, True], ids=["without", "with"])
def has_bfloat16(request, monkeypatch):
    """A CPU without and with instructions for bfloat16."""
    monkeypatch.setattr(native, "has_bfloat16", lambda: request.param)
    return request.param


def test_float32_is_float32_everywhere(has_bfloat16):
    assert precision.choose("float32") == ("float32", False)


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_a_cpu_rounds_factors_where_it_is_made_for_it(dtype, has_bfloat16):
    assert precision.choose(dtype) == ("float32", has_bfloat16)


@pytest.mark.parametrize(
    ("dtype", "activations"),
    [("float32", "float32"), ("auto", "float32"), ("bfloat16", "bfloat16")],
)
def test_on_an_accelerator_it_is_the_type_of_activations(dtype, activations, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert precision.choose(dtype) == (activations, False)


@pytest.mark.parametrize(("backend", "activations"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_a_network_computes_as_the_machine_does(backend, activations, config, monkeypatch):
    """Also one that another machine has trained."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config.model.name = "arch02"
    config.model.dtype = "bfloat16"
    assert create_model(config.model).dtype == jnp.dtype(activations)


@needs_library
def test_only_what_asks_for_it_rounds_its_factors(config):
    """Whatever JAX's own precision is, as `JAX_DEFAULT_MATMUL_PRECISION` sets it."""
    config.model.name = "arch02"
    model = create_model(config.model)
    init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    with jax.default_matmul_precision("bfloat16"):
        text = jax.jit(init).lower(jnp.zeros((2, *IMAGE_SHAPE))).as_text()
    assert "bfloat16 = false" in text
    assert "bfloat16 = true" not in text


@needs_library
@pytest.mark.parametrize("sam_radius", [0.0, 0.05])
def test_a_step_rounds_its_factors_in_every_convolution(config, has_bfloat16, sam_radius):
    config.model.name = "arch02"
    config.model.dtype = "auto"
    config.train.sam_radius = sam_radius
    model, mesh = loop.create_network(config)
    size = config.train.batch_size
    training = loop.create_training(config, model, mesh, np.zeros(size, np.uint8))
    state = jax.eval_shape(training.create_state)
    batch = jnp.zeros((size, *IMAGE_SHAPE), jnp.uint8), jnp.zeros(size, jnp.int32)
    text = steps.make_train_step(training.step, mesh).lower(state, *batch).as_text()
    said = text.count("bfloat16 = true"), text.count("bfloat16 = false")
    assert said[not has_bfloat16] >= 5
    assert said[has_bfloat16] == 0


@pytest.mark.slow
@needs_library
def test_a_run_that_rounds_its_factors_says_so_and_repeats_to_the_bit(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(native, "has_bfloat16", lambda: True)
    config.model.name = "arch02"
    config.train.epochs = 1
    records = []
    for dtype in ("auto", "bfloat16", "float32"):
        config.model.dtype = dtype
        records.append(train.train_and_evaluate(config, tmp_path / dtype))
    said = [record["convolutions"] for record in records]
    assert said == ["native bfloat16", "native bfloat16", "native"]
    first, again, exact = (record["history"][-1]["valid/loss"] for record in records)
    assert first == again != exact
    assert first == pytest.approx(exact, abs=0.05)


@pytest.mark.slow
def test_who_asks_for_bfloat16_in_vain_is_told(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(native, "has_bfloat16", lambda: False)
    config.model.dtype = "bfloat16"
    config.train.epochs = 1
    record = train.train_and_evaluate(config, tmp_path)
    assert record["convolutions"] == native.convolutions()
    assert "Training in float32: config.model.dtype is bfloat16" in caplog.text
