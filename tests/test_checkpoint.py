import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same, flip_bit

from fer_jax import models
from fer_jax.errors import CheckpointError
from fer_jax.runs import checkpoint
from fer_jax.state import create_state

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def state(config):
    return create_state(models.create_model(config.model), optax.adam(1e-3), jnp.uint32(0))


def at(state, step):
    """Returns a state that differs from the others in every array."""
    moved = jax.tree.map(lambda p: p + step, state.params)
    return state.replace(step=jnp.int32(step), params=moved)


def test_what_is_restored_is_what_was_saved(state, tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(at(state, 3), {"history": [{"valid/loss": 0.1 + 0.2}]}, 0.5)
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore_latest(state)
    assert_same(restored, at(state, 3))
    assert progress == {"history": [{"valid/loss": 0.1 + 0.2}]}  # to the last bit
    assert checkpoint.read_progress(tmp_path)["history"] == progress["history"]
    assert_same(checkpoint.load_variables(tmp_path, 3), at(state, 3).variables)


def test_nothing_there_restores_nothing(state, tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state) is None
    assert checkpoint.read_progress(tmp_path / "nowhere") is None


def test_the_two_latest_and_the_best_are_kept(state, tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        for step, score in enumerate([0.3, 0.9, 0.2, 0.9, 0.1, None, 0.4], start=1):
            checkpoints.save(at(state, step), {}, score)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7]  # 2: the earlier of two equals
    with checkpoint.Checkpointer(tmp_path) as checkpoints:  # also after a new start
        checkpoints.save(at(state, 8), {}, 0.5)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 7, 8]


def test_a_step_that_is_damaged_twice_is_set_aside_twice(state, tmp_path):
    for _ in range(2):
        with checkpoint.Checkpointer(tmp_path) as checkpoints:
            checkpoints.save(at(state, 1), {}, 0.5)
        (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("{")
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
    assert [path.name for path in (tmp_path / "checkpoints").glob("1*")] == ["1.damaged"]


def test_a_save_in_flight_is_not_changed_by_the_next_step(state, tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    expected = jax.device_get(at(state, 1))
    expected = jax.tree.map(np.array, expected)
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        current = jax.tree.map(jnp.array, at(state, 1))
        checkpoints.save(current, {}, 0.5)
        for _ in range(5):
            current = overwrite(current)
        jax.block_until_ready(current)
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(state, 1)[0], expected)


@pytest.mark.parametrize("damage", ["cut", "gone", "noise", "bit"])
def test_an_unreadable_newest_checkpoint_falls_back_and_says_so(state, tmp_path, damage, caplog):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at(state, step), {"step": step}, 0.5)
    folder = tmp_path / "checkpoints" / "2"
    if damage == "bit":
        flip_bit(folder)
    for path in (folder / "state").rglob("*"):
        if not path.is_file() or damage == "bit":
            continue
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:5] if damage == "cut" else b"noise" * 50)
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore_latest(state)
        assert progress == {"step": 1}
        assert_same(restored, at(state, 1))
        assert re.search("checkpoints/2 (cannot be read|is damaged)", caplog.text)
        with pytest.raises(CheckpointError, match=r"checkpoints/2 (cannot be read|is damaged)"):
            checkpoint.load_variables(tmp_path, 2)
        checkpoints.save(at(state, 2), {"step": 2}, 0.5)  # its place is free again
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state)[1] == {"step": 2}


def test_no_readable_checkpoint_is_an_error_not_a_new_start(state, tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(at(state, 1), {}, 0.5)
    for path in (tmp_path / "checkpoints" / "1").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        checkpoint.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="none of the checkpoints"),
    ):
        checkpoints.restore_latest(state)


def test_a_checkpoint_of_another_network_is_refused(state, config, tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(at(state, 1), {}, 0.5)
        checkpoints.wait()
        config.model.name = "arch02"
        other = jax.eval_shape(
            lambda: create_state(models.create_model(config.model), optax.adam(1e-3), jnp.uint32(0))
        )
        with pytest.raises(CheckpointError):
            checkpoints.restore(other, 1)


def test_variables_of_another_network_are_refused_by_name(state, config, tmp_path):
    model = models.create_model(config.model)
    checkpoint.check_variables(jax.device_get(state.variables), model, tmp_path)
    config.model.name = "arch02"
    with pytest.raises(CheckpointError, match=r"another network: params/conv1/bias is \(4,\), not"):
        checkpoint.check_variables(
            jax.device_get(state.variables), models.create_model(config.model), tmp_path
        )


def test_a_folder_is_made_only_when_checkpoints_are_opened(tmp_path):
    checkpoint.Checkpointer(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checksums_tell_shape_dtype_and_every_bit_apart():
    zeros = np.zeros((2, 3), np.float32)
    one_bit = zeros.copy()
    one_bit.view(np.uint8)[0, 0] = 1
    others = [zeros.reshape(3, 2), zeros.astype(np.float16), one_bit, zeros[:, ::-1] + one_bit]
    digests = {checkpoint.checksums({"x": x})["x"] for x in (zeros, *others)}
    assert len(digests) == 4  # the last two are the same numbers, wherever they lie in memory
    assert checkpoint.checksums({"x": zeros}) == checkpoint.checksums({"x": jnp.asarray(zeros)})
    assert checkpoint.fingerprint({"x": zeros}) != checkpoint.fingerprint({"y": zeros})
