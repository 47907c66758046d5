import jax
import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import train
from fer_jax.errors import CheckpointError
from fer_jax.runs import stop, workdir

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def first(config, tmp_path):
    """The folder of a finished run of two epochs, and what it predicts for train."""
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.02
    train.train_and_evaluate(config, tmp_path / "first")
    run = train._Run(config, tmp_path / "first", stop.StopRequest())
    with run.checkpoints:
        state = run.best_state(run.best())
    _, probabilities = run.evaluator(state.variables, "train")
    return tmp_path / "first", jax.device_get(state.params), probabilities.argmax(axis=1)


def test_a_run_goes_on_from_another_without_what_it_disagrees_with(config, first, tmp_path):
    folder, params, predicted = first
    agree = predicted == np.asarray(train.load_dataset(config.data).splits["train"].labels)
    assert 2 <= agree.sum() < 70
    config.train.start_from = str(folder)
    config.train.drop_disagreeing = True
    config.train.batch_size = 2
    config.train.epochs = 1
    run = train._Run(config, tmp_path / "second", stop.StopRequest())
    with run.checkpoints:
        jax.tree.map(np.testing.assert_array_equal, run.state.params, params)
        assert int(run.state.step) == 0
        np.testing.assert_array_equal(
            run.train.labels, run.evaluator._dataset.splits["train"].labels[agree]
        )
    results = train.train_and_evaluate(config, tmp_path / "second")
    assert results["train_images"] == agree.sum()
    assert results["metrics"]["train"]["count"] == 70  # evaluated on all of train
    assert results["config"]["train"]["start_from"] == "first"
    assert str(tmp_path) not in (tmp_path / "second" / "results.json").read_text()
    assert train.train_and_evaluate(config, tmp_path / "second") == results


def test_without_dropping_all_images_stay(config, first, tmp_path):
    config.train.start_from = str(first[0])
    config.train.epochs = 1
    results = train.train_and_evaluate(config, tmp_path / "second")
    assert results["train_images"] == 70


def test_a_run_that_is_not_finished_is_no_start(config, tmp_path):
    config.train.start_from = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no finished run"):
        train.train_and_evaluate(config, tmp_path / "second")
    assert workdir.read_json(tmp_path / "second" / "results.json") is None


def test_dropping_needs_a_run_to_start_from(config):
    config.train.drop_disagreeing = True
    with pytest.raises(ValueError, match=r"needs config\.train\.start_from"):
        config_lib.validate(config)
