import jax
import numpy as np
import pytest

from fer_jax import predict
from fer_jax.machine import devices
from fer_jax.models import create_model
from fer_jax.runs.clock import Clock


@pytest.fixture
def model(config):
    return create_model(config.model)


@pytest.fixture
def variables(model):
    images = np.zeros((1, 48, 48, 1), np.float32)
    return jax.device_get(model.init(jax.random.key(0), images, train=False))


def expected(model, variables, images):
    """Log-probabilities of one image after another, in float64 from the logits on."""
    logits = [
        model.apply(variables, image[None] / np.float32(255), train=False) for image in images
    ]
    logits = np.concatenate(logits).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_what_an_image_gives_depends_on_neither_batch_nor_neighbours(
    model, variables, dataset, count, scanned, monkeypatch
):
    monkeypatch.setattr(predict, "is_scanned", lambda mesh: scanned)
    mesh = devices.create_mesh(count, 16)
    images = dataset.splits["test"].images
    alone = expected(model, variables, images)
    for size in (3, 16, 23, 64):  # 23 images; 3 and 23 are rounded up to a multiple of two
        found = predict.make_predict(model, mesh, size)(variables, images)
        assert (found.shape, found.dtype) == ((23, 7), np.float32)
        np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("scanned", [False, True])
def test_no_image_and_images_that_are_placed_already(
    model, variables, dataset, scanned, monkeypatch
):
    monkeypatch.setattr(predict, "is_scanned", lambda mesh: scanned)
    mesh = devices.create_mesh(2, 16)
    images = dataset.splits["test"].images
    run = predict.make_predict(model, mesh, 16)
    assert run(variables, images[:0]).shape == (0, 7)
    placed = devices.put(np.asarray(images), devices.replicated(mesh))
    np.testing.assert_array_equal(run(variables, placed), run(variables, images))


def test_the_first_call_is_compilation(model, variables, dataset):
    clock = Clock()
    run = predict.make_predict(model, devices.create_mesh(1, 16), 16, clock)
    images = dataset.splits["test"].images
    run(variables, images[:7])
    assert "evaluate" not in clock.seconds()
    compiled = clock.seconds()["compile"]
    run(variables, images)
    assert clock.seconds()["compile"] == compiled
    assert clock.seconds()["evaluate"] > 0


def test_products_are_exact_where_a_gpu_would_round_them(model, variables):
    images = np.zeros((2, 48, 48, 1), np.float32)
    with predict.exact_products():
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    products = [line for line in str(traced).splitlines() if "precision=" in line]
    assert products
    assert all("HIGHEST" in line for line in products)
