import shutil

import jax
import numpy as np
import pytest
from helpers import arrays_of, assert_same, tiny_config

from fer_jax import config as config_lib
from fer_jax import evaluate, loop, progressive, train
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import CheckpointError, TrainingError
from fer_jax.predict import make_predict
from fer_jax.runs import checkpoint, workdir

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A finished run of two epochs: folder, parameters, and what it predicts for train."""
    folder = tmp_path_factory.mktemp("trained") / "first"
    config = tiny_config(config_lib.get_config(), data_dir)
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.02
    with jax.numpy_dtype_promotion("standard"):
        results = train.train_and_evaluate(config, folder)
        variables = checkpoint.load_variables(folder, results["best_step"])
        model, mesh = loop.create_network(config)
        images = load_dataset(config.data).splits["train"].images
        log_probs = make_predict(model, mesh, 16)(variables, images)
    return folder, variables["params"], log_probs.argmax(axis=1)


@pytest.fixture
def first(trained, config, tmp_path):
    """The same, in a folder of the test's own; the configuration is the run's."""
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.02
    shutil.copytree(trained[0], tmp_path / "first")
    return tmp_path / "first", *trained[1:]


def train_from(config, folder, workdir):
    """Trains for one epoch more in a folder of its own; returns the record."""
    config.train.start_from = str(folder)
    config.train.epochs = 1
    return train.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_a_run_goes_on_from_another_without_what_it_disagrees_with(config, first, tmp_path):
    folder, params, predicted = first
    agree = predicted == np.asarray(load_dataset(config.data).splits["train"].labels)
    assert 2 <= agree.sum() < 70
    config.train.start_from = str(folder)
    config.train.drop_disagreeing = True
    config.train.learning_rate = 0.0
    config.train.batch_size = 2
    config.train.epochs = 1
    results = train.train_and_evaluate(config, tmp_path / "second")
    assert results["train_images"] == agree.sum()
    assert_same(arrays_of(tmp_path / "second")["params"], params)  # it began there
    assert results["history"][-1]["step"] == agree.sum() // 2
    assert results["metrics"]["train"]["count"] == 70  # evaluated on all of train
    assert results["config"]["train"]["start_from"] == "first"
    assert str(tmp_path) not in (tmp_path / "second" / "results.json").read_text()
    assert train.train_and_evaluate(config, tmp_path / "second") == results


def test_another_start_of_the_same_name_is_refused(config, first, tmp_path):
    folder, _, _ = first
    results = train_from(config, folder, tmp_path / "second")
    shutil.rmtree(folder)
    config.train.start_from, config.seed = None, 1
    train.train_and_evaluate(config, folder)
    config.train.start_from, config.seed, config.train.epochs = str(folder), 0, 2
    with pytest.raises(TrainingError, match=r"is not what the run in .* began with"):
        train.train_and_evaluate(config, tmp_path / "second")
    assert len(results["origin"]) == 64


def test_a_run_is_evaluated_without_the_folder_that_it_started_from(config, first, tmp_path):
    folder, _, _ = first
    results = train_from(config, folder, tmp_path / "second")
    shutil.rmtree(folder)
    assert (
        evaluate.evaluate_best(config, tmp_path / "second", "valid") == results["metrics"]["valid"]
    )


def test_a_tilde_in_the_folder_is_ones_home(config, first, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train_from(config, "~/first", tmp_path / "second")["epochs_run"] == 1


def test_the_kept_images_are_those_whose_likeliest_class_is_their_label(dataset):
    split = dataset.splits["train"]
    log_probs = np.log(np.full((70, 7), 1e-3, np.float32))
    log_probs[np.arange(70), split.labels] = 0
    log_probs[[3, 9]] = log_probs[[4, 10]]
    kept = progressive.drop_disagreeing(split, log_probs)
    rows = np.setdiff1d(np.arange(70), [3, 9])
    for name in ("images", "labels", "ids", "in_train"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(split, name)[rows])


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


def test_a_run_with_other_classes_is_no_start(config, first, dataset):
    classes = list(dataset.classes)
    with pytest.raises(CheckpointError, match=r"first tells apart Anger, .*; the classes here"):
        progressive.best_variables(first[0], "config.train.start_from", classes[::-1])
    with pytest.raises(CheckpointError, match=r"the classes here are Anger, Disgust$"):
        progressive.best_variables(first[0], "config.train.start_from", classes[:2])


def test_dropping_needs_a_run_to_start_from(config):
    config.train.drop_disagreeing = True
    with pytest.raises(ValueError, match=r"needs config\.train\.start_from"):
        config_lib.validate(config)
