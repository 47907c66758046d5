"""Optimisers, schedules and averages against formulas and NumPy written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax import optim
from fer_jax.config import get_config

pytestmark = pytest.mark.usefixtures("standard_promotion")


def train_config(**fields):
    config = get_config()
    config.train.update(fields)
    return config


def params_and_grads(number=3):
    random = np.random.default_rng(0)

    def tree():
        return {
            "conv": {
                "kernel": random.normal(size=(3, 3, 4, 8)).astype(np.float32),
                "bias": random.normal(size=8).astype(np.float32),
            },
            "norm": {"scale": random.normal(size=8).astype(np.float32)},
            "dense": {"kernel": random.normal(size=(20, 7)).astype(np.float32)},
        }

    return tree(), [tree() for _ in range(number)]


def run(config, params, grads, per_epoch=4):
    tx = optim.create_optimizer(config, per_epoch)
    state, history = tx.init(params), []
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def rates(config, per_epoch, steps):
    schedule = optim.create_schedule(config, per_epoch)
    assert callable(schedule)
    return np.array([float(schedule(step)) for step in range(steps)])


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_against_their_formulas(schedule, warmup_epochs):
    config = train_config(
        schedule=schedule, warmup_epochs=warmup_epochs, epochs=3, learning_rate=0.5
    )
    warmup, total = int(4 * warmup_epochs), 12
    expected = []
    for step in range(total + 3):
        if step < warmup:
            expected.append(0.5 * step / warmup)
            continue
        done = min((step - warmup) / (total - warmup), 1)
        left = (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 1 - done
        expected.append(0.5 * left)
    np.testing.assert_allclose(rates(config, 4, total + 3), expected, atol=1e-7)


def test_sgd_with_nesterov_momentum_decay_and_a_bias_rate_against_numpy():
    config = train_config(
        optimizer="sgd", momentum=0.9, learning_rate=0.1, weight_decay=0.01, bias_rate=64.0
    )
    params, grads = params_and_grads()
    found = run(config, params, grads)[-1]
    for path, start in jax.tree_util.tree_leaves_with_path(params):
        value, trace = np.float64(start), 0.0
        for tree in grads:
            grad = np.float64(dict(jax.tree_util.tree_leaves_with_path(tree))[path])
            trace = grad + 0.9 * trace
            update = grad + 0.9 * trace
            value = value - (0.1 * (update + 0.01 * value) if start.ndim > 1 else 6.4 * update)
        np.testing.assert_allclose(
            dict(jax.tree_util.tree_leaves_with_path(found))[path], value, rtol=1e-4, atol=1e-4
        )


def test_a_bias_rate_of_one_leaves_the_optimisers_state_as_it_was():
    params, _ = params_and_grads()
    plain = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(1e-3)).init(params)
    state = optim.create_optimizer(get_config(), 4).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(plain)


def newton_schulz(matrix):
    """Jordan 2024: five steps of the quintic iteration, on the smaller side."""
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if turned else x


def test_muon_makes_each_kernels_update_orthogonal_as_numpy_does():
    config = train_config(optimizer="muon", momentum=0.9, learning_rate=0.1, bias_rate=0.5)
    params, grads = params_and_grads(1)
    found = run(config, params, grads)[-1]
    for name in ("conv", "dense"):
        start, grad = params[name]["kernel"], grads[0][name]["kernel"]
        matrix = np.float64(grad.reshape(-1, grad.shape[-1]))
        # What Nesterov's momentum makes of the first gradient points where it does.
        inputs, outputs = matrix.shape
        update = newton_schulz(matrix) * np.sqrt(max(1, outputs / inputs))
        expected = start - 0.1 * update.reshape(start.shape)
        np.testing.assert_allclose(found[name]["kernel"], expected, atol=2e-3)
    # Adam's first step, whose momentum is Nesterov's, against the sign of the gradient.
    moved = (found["conv"]["bias"] - params["conv"]["bias"]) / np.sign(grads[0]["conv"]["bias"])
    assert (moved < 0).all()
    np.testing.assert_allclose(moved, moved[0], rtol=1e-3)
    assert abs(moved[0]) < 0.1


def test_muon_decays_kernels():
    config = train_config(optimizer="muon", learning_rate=0.5, weight_decay=0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    found = run(config, params, [zero])[-1]
    np.testing.assert_allclose(found["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], 1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_averages_against_the_closed_form(decay):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    # What they start from does not matter.
    averages = {"w": jnp.full(3, 1e3), "stats": {"mean": jnp.zeros(3)}}
    update = jax.jit(optim.update_averages, static_argnums=3)
    for i, value in enumerate(values):
        tree = {"w": jnp.asarray(value), "stats": {"mean": jnp.asarray(2 * value)}}
        averages = update(averages, tree, jnp.int32(i + 1), decay)
        weights = np.float64(decay) ** np.arange(i, -1, -1)
        expected = (weights[:, None] * values[: i + 1]).sum(axis=0) / weights.sum()
        np.testing.assert_allclose(averages["w"], expected, atol=2e-3 if i < 2 else 1e-4)
        np.testing.assert_allclose(averages["stats"]["mean"], 2 * expected, atol=1e-4)


def test_the_climb_goes_uphill_by_the_radius():
    params, (grads,) = params_and_grads(1)
    there = optim.climb(params, grads, 0.05)
    moved = jax.tree.map(lambda a, b: np.float64(a) - b, there, params)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.05, rel=1e-4)
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (moved, grads)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine == pytest.approx(1, abs=1e-4)
    assert np.isfinite(
        jax.tree.leaves(optim.climb(params, jax.tree.map(np.zeros_like, params), 1.0))[0]
    ).all()
