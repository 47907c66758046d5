"""The ingredients of strong recipes inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import Tiny

from fer_jax import keys, loop, models, optim, steps
from fer_jax.data import pipeline
from fer_jax.data.augment import alternating_flips
from fer_jax.errors import ConfigError
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import create_model
from fer_jax.models.layers import BatchNorm, Conv, Dense
from fer_jax.state import create_state

pytestmark = pytest.mark.usefixtures("standard_promotion")

PER_EPOCH = 4


def batch_of(dataset, size=16, start=0):
    train = dataset.splits["train"]
    rows = slice(start, start + size)
    return np.asarray(train.images[rows]), np.asarray(train.labels[rows], np.int32)


def soft_of(size=16, seed=0):
    logits = np.random.default_rng(seed).normal(size=(size, 7)).astype(np.float32)
    return np.asarray(jax.nn.softmax(logits))


def build(config, count=1):
    mesh = devices.create_mesh(count, config.train.batch_size)
    model = create_model(config.model, axis_name=BATCH_AXIS)
    tx = optim.create_optimizer(config, PER_EPOCH)
    state = create_state(model, tx, config.seed, bool(config.train.ema_decay))
    step = steps.make_train_step(steps.make_device_step(model, tx, config, PER_EPOCH), mesh)
    return mesh, model, tx, step, devices.put(jax.device_get(state), devices.replicated(mesh))


def run(config, batches, count=1):
    """Returns the states after each of the batches."""
    mesh, _, _, step, state = build(config, count)
    states = []
    for batch in batches:
        state = step(state, *devices.put(batch, devices.sharded(mesh)))
        states.append(jax.device_get(state))
    return states


def assert_close(a, b, tolerance=1e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(x), 1e-3)


def sgd(config, **fields):
    config.train.update({"optimizer": "sgd", "learning_rate": 0.05} | fields)
    return config


EVERYTHING = {
    "momentum": 0.9,
    "schedule": "linear",
    "bias_rate": 4.0,
    "weight_decay": 1e-3,
    "label_smoothing": 0.1,
    "mixup": 0.5,
    "cutmix": 1.0,
    "ema_decay": 0.9,
    "sam_radius": 0.05,
}


def with_everything(config):
    sgd(config, **EVERYTHING, teachers=("a",), distill_weight=0.5, temperature=2.0)
    config.augment.update(
        {"alternate_flip": True, "crop": 0.2, "rotate": 10.0, "brightness": 0.2, "contrast": 0.2}
    )
    return config


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing_but_rounding(config, dataset):
    with_everything(config)
    images, labels = batch_of(dataset)
    batches = [(images, (labels, soft_of()))] * 3
    one = run(config, batches, 1)[-1]
    many = run(config, batches, 4)[-1]
    assert_close(one.params, many.params, 1e-3)
    assert_close(one.averages, many.averages, 1e-3)
    np.testing.assert_array_equal(one.running.correct, many.running.correct)


@pytest.mark.slow
def test_resident_steps_see_the_streamed_batches(config, dataset):
    with_everything(config)
    train = dataset.splits["train"]
    images, labels = np.asarray(train.images), np.asarray(train.labels, np.int32)
    soft = soft_of(len(labels))
    mesh, model, tx, _, state = build(config, 2)
    device_step = steps.make_device_step(model, tx, config, PER_EPOCH)
    resident = steps.make_resident_step(device_step, mesh, 16)
    orders = [np.asarray(pipeline.epoch_order(jnp.uint32(0), e, len(labels))) for e in (0, 1)]
    rows = [order[16 * i : 16 * (i + 1)] for order in orders for i in range(PER_EPOCH)]
    streamed = run(config, [(images[r], (labels[r], soft[r])) for r in rows], 2)[-1]
    placed = devices.put((images, (labels, soft)), devices.replicated(mesh))
    for order in orders:
        for _ in range(PER_EPOCH):
            state = resident(state, devices.put(order, devices.replicated(mesh)), *placed)
    assert_close(state.params, streamed.params, 1e-3)
    assert_close(state.averages, streamed.averages, 1e-3)


class Normalised(nn.Module):
    """A network with BatchNorm that compiles in no time."""

    num_classes: int = 7
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = BatchNorm(self.axis_name, name="norm1")(images, train=train)
        x = nn.relu(Conv(4, (4, 4), strides=(4, 4), padding="VALID", name="conv1")(x))
        return Dense(self.num_classes, name="logits")(x.reshape(images.shape[0], -1))


@pytest.mark.slow
def test_averages_hold_what_the_closed_form_says_and_are_what_is_evaluated(
    config, dataset, monkeypatch
):
    monkeypatch.setitem(models.MODELS, "normalised", Normalised)
    config.model.name = "normalised"
    sgd(config, ema_decay=0.8)
    states = run(config, [batch_of(dataset, 16, 16 * i) for i in range(4)])
    weights = 0.8 ** np.arange(3.0, -1, -1)
    for name in ("params", "batch_stats"):
        expected = jax.tree.map(
            lambda *v: np.tensordot(weights, np.float64(v), 1) / weights.sum(),
            *[getattr(state, name) for state in states],
        )
        assert_close(expected, states[-1].averages[name], 1e-5)
    assert states[-1].variables is states[-1].averages
    assert set(states[-1].variables) == {"params", "batch_stats"}
    assert jax.tree.leaves(states[-1].averages["batch_stats"])


@pytest.mark.slow
def test_averages_change_nothing_about_training(config, dataset):
    batches = [batch_of(dataset)] * 3
    plain = run(config, batches)[-1]
    assert plain.averages == {}
    config.train.ema_decay = 0.9
    averaged = run(config, batches)[-1]
    jax.tree.map(np.testing.assert_array_equal, plain.params, averaged.params)


@pytest.mark.slow
def test_sharpness_aware_steps_take_the_gradient_uphill(config, dataset):
    config.model.dropout = 0.0
    sgd(config, momentum=0.0, sam_radius=0.1)
    images, labels = batch_of(dataset)
    _, model, _, _, start = build(config)
    start = jax.device_get(start)

    def loss(params):
        logits = model.apply({"params": params}, images / np.float32(255), train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    grads = jax.grad(loss)(start.params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    there = jax.tree.map(lambda p, g: p + 0.1 * g / norm, start.params, grads)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, start.params, jax.grad(loss)(there))
    state = run(config, [(images, labels)])[-1]
    moved = jax.tree.map(np.subtract, state.params, start.params)
    assert_close(jax.tree.map(np.subtract, expected, start.params), moved, 1e-3)
    # The loss that is shown is that of where the step began.
    assert state.running.means()["loss"] == pytest.approx(float(loss(start.params)), rel=1e-5)


def test_distillation_against_numpy():
    logits = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    soft, temperature = soft_of(5), 3.0
    scaled = np.float64(logits) / temperature
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    found = steps.distillation(jnp.asarray(logits), jnp.asarray(soft), temperature)
    np.testing.assert_allclose(found, -(9 * soft * log_p).sum(axis=1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_soft_labels_get_their_share_of_the_loss(config, dataset, weight):
    config.model.dropout = 0.0
    sgd(config, momentum=0.0, teachers=("a",), distill_weight=weight, temperature=2.0)
    (images, labels), soft = batch_of(dataset), soft_of()
    _, model, _, _, start = build(config)
    start = jax.device_get(start)

    def loss(params):
        logits = model.apply({"params": params}, images / np.float32(255), train=False)
        hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        taught = steps.distillation(logits, jnp.asarray(soft), 2.0)
        return ((1 - weight) * hard + weight * taught).mean()

    expected = jax.tree.map(lambda g: -0.05 * g, jax.grad(loss)(start.params))
    state = run(config, [(images, (labels, soft))])[-1]
    assert_close(expected, jax.tree.map(np.subtract, state.params, start.params), 1e-3)


def test_labels_are_mixed_as_the_images_are():
    logits = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    labels, weights = np.array([0, 3, 6, 2], np.int32), np.arange(1, 8, dtype=np.float32)
    own = np.array([0.7, 0.7, 0.1, 0.1], np.float32)
    losses = {
        way: np.asarray(steps.objective(jnp.asarray(logits), jnp.asarray(given), 0.1, weights))
        for way, given in (("own", labels), ("other", labels[[1, 0, 3, 2]]))
    }
    found = steps.objective(jnp.asarray(logits), jnp.asarray(labels), 0.1, weights, own)
    expected = own * losses["own"] + (1 - own) * losses["other"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


SEEN = []


class Watched(Tiny):
    """Shows the images that reach the network."""

    def __call__(self, images, *, train):
        if train:
            jax.debug.callback(lambda x: SEEN.append(np.asarray(x)), images)
        return super().__call__(images, train=train)


@pytest.mark.slow
def test_alternating_flips_follow_the_epoch(config, dataset, monkeypatch):
    monkeypatch.setitem(models.MODELS, "watched", Watched)
    SEEN.clear()
    config.model.name = "watched"
    config.augment.alternate_flip = True
    images, labels = batch_of(dataset)
    run(config, [(images, labels)] * (2 * PER_EPOCH))
    jax.effects_barrier()
    first = np.asarray(alternating_flips(keys.flip_key(jnp.uint32(0)), jnp.int32(0), images))
    assert first.any()
    assert not first.all()
    pixels = images / np.float32(255)
    assert len(SEEN) == 2 * PER_EPOCH
    for step, seen in enumerate(SEEN):
        flips = first ^ (step // PER_EPOCH == 1)
        expected = np.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
        np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_pairs_must_lie_on_one_device(config):
    config.train.mixup = 1.0
    config.train.batch_size = 24
    labels = np.zeros(70, np.uint8)
    loop.create_training(config, *loop.create_network(config, requested=4), labels)
    with pytest.raises(ConfigError, match="puts 3 images on each device"):
        loop.create_training(config, *loop.create_network(config, requested=8), labels)
