import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close
from jax.sharding import PartitionSpec as P

from fer_jax import keys, optim, steps
from fer_jax.data import pipeline
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import create_model
from fer_jax.state import create_state

pytestmark = pytest.mark.usefixtures("standard_promotion")


def build(config, count=1, per_epoch=4):
    """Returns (mesh, model, tx, state on the mesh)."""
    mesh = devices.create_mesh(count, config.train.batch_size)
    model = create_model(config.model, axis_name=BATCH_AXIS)
    tx = optim.create_optimizer(config, per_epoch)
    state = jax.jit(create_state, static_argnums=(0, 1))(model, tx, jnp.uint32(config.seed))
    return mesh, model, tx, devices.put(jax.device_get(state), devices.replicated(mesh))


def batch_of(dataset, size):
    train = dataset.splits["train"]
    return np.asarray(train.images[:size]), np.asarray(train.labels[:size], np.int32)


def run_steps(config, dataset, count=1, number=3):
    mesh, model, tx, state = build(config, count)
    step = steps.make_train_step(steps.make_device_step(model, tx, config, 4), mesh)
    batch = devices.put(batch_of(dataset, config.train.batch_size), devices.sharded(mesh))
    for _ in range(number):
        state = step(state, *batch)
    return jax.device_get(state), step


def assert_trees(compare, a, b, **kwargs):
    jax.tree.map(lambda x, y: compare(x, y, **kwargs), a, b)


def test_a_step_is_adam_on_the_mean_cross_entropy(config, dataset):
    config.model.dropout = 0.0
    _, model, _, start = build(config)
    images, labels = batch_of(dataset, 16)

    def loss(params):
        logits = model.apply({"params": params}, images / np.float32(255), train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    start = jax.device_get(start)
    value, grads = jax.jit(jax.value_and_grad(loss))(start.params)
    state, _ = run_steps(config, dataset, number=1)
    # Adam's first step: m / (1 - b1) = g and v / (1 - b2) = g^2.
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g / (np.abs(g) + 1e-8), start.params, grads)
    assert_trees(np.testing.assert_allclose, state.params, expected, atol=2e-6)
    assert state.running.means()["loss"] == pytest.approx(float(value), rel=1e-5)
    assert int(state.step) == 1
    assert int(state.bad_step) == -1


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(config, dataset):
    config.train.batch_size = 8
    config.model.name = "arch02"
    config.model.dropout = 0.0
    state, _ = run_steps(config, dataset, number=60)
    images, labels = batch_of(dataset, 8)
    model = create_model(config.model)
    logits = model.apply(state.variables, images / np.float32(255), train=False)
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), labels)


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing_but_rounding(config, dataset):
    config.augment.flip = True
    config.augment.shift = 0.1
    config.augment.erase = 0.5
    one, _ = run_steps(config, dataset, 1)
    for count in (2, 8):
        many, _ = run_steps(config, dataset, count)
        assert_close(one.params, many.params)
        assert one.running.correct == many.running.correct
        assert one.running.count == many.running.count == 48


def test_same_seed_same_bits_and_another_seed_other_parameters(config, dataset):
    first, _ = run_steps(config, dataset, 2)
    again, _ = run_steps(config, dataset, 2)
    assert_trees(np.testing.assert_array_equal, first, again)
    config.seed = 1
    other, _ = run_steps(config, dataset, 2)
    kernel = lambda state: state.params["conv1"]["kernel"]  # noqa: E731
    assert not np.array_equal(kernel(first), kernel(other))


def test_one_trace_serves_all_steps(config, dataset):
    _, step = run_steps(config, dataset, number=4)
    assert step._cache_size() == 1


@pytest.mark.slow
def test_resident_steps_see_the_streamed_batches(config, dataset):
    mesh, model, tx, state = build(config, 2)
    train = dataset.splits["train"]
    images, labels = np.asarray(train.images), np.asarray(train.labels, np.int32)
    order = pipeline.epoch_order(jnp.uint32(0), jnp.int32(0), len(labels))
    device_step = steps.make_device_step(model, tx, config, 4)
    resident = steps.make_resident_step(device_step, mesh, 16)
    placed = devices.put((np.asarray(order), images, labels), devices.replicated(mesh))
    by_one = jax.device_get(state)
    for _ in range(3):
        state = resident(state, *placed)
    streamed = devices.put(by_one, devices.replicated(mesh))
    step = steps.make_train_step(device_step, mesh)
    for i in range(3):
        rows = np.asarray(order)[16 * i : 16 * (i + 1)]
        streamed = step(streamed, *devices.put((images[rows], labels[rows]), devices.sharded(mesh)))
    assert_close(state.params, streamed.params)
    scanned = devices.put(by_one, devices.replicated(mesh))
    epoch = steps.make_resident_epoch(device_step, mesh, 16, 3)
    scanned = epoch(scanned, *placed[1:], devices.put(np.int32(0), devices.replicated(mesh)))
    assert_close(scanned.params, streamed.params)
    assert scanned.running.correct == streamed.running.correct


@pytest.mark.slow
def test_jit_changes_nothing_but_rounding(config, dataset):
    config.train.batch_size = 2
    jitted, _ = run_steps(config, dataset, number=1)
    _, _, tx, state = build(config)
    model = create_model(config.model)
    images, labels = batch_of(dataset, 2)
    with jax.disable_jit():
        keys_ = keys.step_keys(jnp.uint32(0), jnp.int32(0))

        def loss(params):
            logits = model.apply(
                {"params": params},
                images / np.float32(255),
                train=True,
                rngs={"dropout": keys_[1]},
            )
            return steps.objective(logits, labels, 0.0, None).sum() / 2

        grads = jax.grad(loss)(state.params)
        updates, _ = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    assert_close(jitted.params, params, 1e-3)


def test_the_first_step_with_a_loss_that_is_not_finite_is_remembered(config, dataset):
    mesh, model, tx, state = build(config)
    step = steps.make_train_step(steps.make_device_step(model, tx, config, 4), mesh)
    batch = devices.put(batch_of(dataset, 16), devices.sharded(mesh))
    state = step(state, *batch)
    poisoned = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
    state = state.replace(params=poisoned)
    for _ in range(3):
        state = step(state, *batch)
    assert int(state.bad_step) == 1


def test_objective_against_numpy():
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 2, 3], np.int32)
    weights = np.arange(1, 8, dtype=np.float32)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.full((5, 7), 0.1 / 7)
    targets[np.arange(5), labels] += 0.9
    expected = -(targets * log_p).sum(axis=1) * weights[labels]
    found = steps.objective(jnp.asarray(logits), jnp.asarray(labels), 0.1, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_balanced_class_weights():
    labels = np.array([0] * 6 + [1] * 2, np.uint8)
    weights = steps.balanced_class_weights(labels)
    np.testing.assert_allclose(weights, [8 / 42, 8 / 14, 0, 0, 0, 0, 0], rtol=1e-6)


@pytest.mark.slow
def test_dropout_follows_the_place_in_the_global_batch(config):
    images = jnp.ones((4, 48, 48, 1))
    model = create_model(config.model, axis_name=BATCH_AXIS)
    variables = model.init(jax.random.key(0), images, train=False)

    def logits(count):
        def apply(images):
            return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})

        mesh, spec = devices.create_mesh(count, 4), P(BATCH_AXIS)
        return np.asarray(jax.shard_map(apply, mesh=mesh, in_specs=spec, out_specs=spec)(images))

    # Rounding alone may differ: a product of another batch size may take another kernel. Other
    # masks are far apart, as the two equal images of one batch show.
    np.testing.assert_allclose(logits(2), logits(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(4), logits(1), rtol=1e-4, atol=1e-5)
    assert np.abs(logits(1)[0] - logits(1)[1]).max() > 1e-2


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_shrinks_kernels_only(config, optimizer, schedule):
    config.train.optimizer = optimizer
    config.train.schedule = schedule
    config.train.weight_decay = 0.1
    config.train.learning_rate = 0.5
    tx = optim.create_optimizer(config, 4)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_cosine_warms_up_and_ends_at_zero(config):
    config.train.schedule = "cosine"
    config.train.optimizer = "sgd"
    config.train.momentum = 0.0
    config.train.warmup_epochs = 1.0
    config.train.learning_rate = 1.0
    tx = optim.create_optimizer(config, 4)  # 2 epochs: 8 steps, 4 of them warm-up
    params = {"kernel": jnp.ones(())}
    state, rates = tx.init(params), []
    for _ in range(9):
        updates, state = tx.update({"kernel": jnp.ones(())}, state, params)
        rates.append(-float(updates["kernel"]))
    expected = [0, 0.25, 0.5, 0.75, *[(1 + np.cos(np.pi * i / 4)) / 2 for i in range(5)]]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
