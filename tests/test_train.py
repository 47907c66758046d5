import json
import shutil
import signal

import jax
import numpy as np
import pytest

from fer_jax import train
from fer_jax.data import arrays
from fer_jax.data.dataset import VERSIONS
from fer_jax.errors import TrainingError, WorkdirError
from fer_jax.runs import checkpoint, record, stop, workdir

pytestmark = pytest.mark.usefixtures("standard_promotion")

TIMINGS = ("train_s",)


def without_timings(history):
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in history]


def final_params(folder, config, monkeypatch):
    """Returns the parameters of the newest checkpoint."""
    run = train._Run(config, folder, stop.StopRequest())
    with run.checkpoints:
        return jax.device_get(run.state.params)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A finished run of three epochs: (configuration, folder, record)."""
    with jax.numpy_dtype_promotion("standard"):
        config = make_config(data_dir)
        folder = tmp_path_factory.mktemp("finished")
        return config, folder, train.train_and_evaluate(config, folder)


def make_config(data_dir):
    from fer_jax import config as config_lib

    config = config_lib.get_config()
    with config.unlocked():
        config.experiment = "tiny"
        config.model.name = "tiny"
        config.data.name = "synthetic_faces"
        config.data.data_dir = str(data_dir)
        config.data.pipeline = "resident"
        config.train.batch_size = 16
        config.train.epochs = 3
        config.train.devices = 1
        config.eval.batch_size = 16
    return config


def test_the_record_says_what_was_run(finished):
    _, folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["config"]["train"]["batch_size"] == 16
    assert "data_dir" not in results["config"]["data"]
    assert str(folder) not in (folder / "results.json").read_text()
    assert results["dataset"]["count"] == {"train": 70, "valid": 21, "test": 23}
    assert results["epochs_run"] == 3
    assert results["test_evaluations"] == 1
    assert results["versions"]["jax"] == jax.__version__
    assert {"compile", "train", "train_cpu", "evaluate", "total"} <= set(results["seconds"])
    for split, count in results["dataset"]["count"].items():
        assert results["metrics"][split]["count"] == count
    assert results["metrics"]["test"]["count_unique"] == 21  # two of test stand in train
    best = results["history"][results["best_epoch"] - 1]
    assert best["valid/accuracy"] == max(row["valid/accuracy"] for row in results["history"])
    assert best["valid/accuracy"] == results["metrics"]["valid"]["accuracy"]


def test_predictions_in_the_record_give_its_accuracy(finished):
    _, _, results = finished
    for split in ("valid", "test"):
        labels, probabilities = record.decode_predictions(results["predictions"][split])
        accuracy = np.mean(probabilities.argmax(axis=1) == labels)
        assert accuracy == pytest.approx(results["metrics"][split]["accuracy"])


def test_the_files_a_run_leaves_are_there(finished):
    _, folder, results = finished
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rows == results["history"]
    for name in ("learning_curves.png", "confusion_valid.png", "confusion_test.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_finished_run_is_not_run_again(finished):
    config, folder, results = finished
    before = (folder / "results.json").stat().st_mtime_ns
    assert train.train_and_evaluate(config, folder) == results
    assert (folder / "results.json").stat().st_mtime_ns == before


def test_more_epochs_go_on_to_the_same_bits(finished, tmp_path):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path / "grown")
    with config.unlocked():
        longer = config.copy_and_resolve_references()
        longer.train.epochs = 5
    grown = train.train_and_evaluate(longer, tmp_path / "grown")
    whole = train.train_and_evaluate(longer, tmp_path / "whole")
    assert without_timings(grown["history"]) == without_timings(whole["history"])
    assert grown["metrics"] == whole["metrics"]
    assert grown["predictions"] == whole["predictions"]
    assert grown["test_evaluations"] == 2  # it had been opened after three epochs
    assert_same(
        final_params(tmp_path / "grown", longer, None),
        final_params(tmp_path / "whole", longer, None),
    )


@pytest.mark.slow
def test_streamed_and_resident_runs_agree_to_the_bit(finished, tmp_path):
    config, _, results = finished
    streamed = config.copy_and_resolve_references()
    streamed.data.pipeline = "stream"
    found = train.train_and_evaluate(streamed, tmp_path)
    assert without_timings(found["history"]) == without_timings(results["history"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.learning_rate", 0.5),
        ("seed", 3),
        ("augment.flip", True),
        ("model.dropout", 0.5),
    ],
)
def test_another_configuration_is_refused_by_name(finished, field, value):
    config, folder, _ = finished
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({field: value})
    with pytest.raises(TrainingError, match=rf"{field}: .* -> {value}.*--workdir"):
        train.train_and_evaluate(changed, folder)


def test_epochs_may_not_grow_where_the_schedule_depends_on_them(config, tmp_path):
    config.train.schedule = "cosine"
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    config.train.epochs = 2
    with pytest.raises(TrainingError, match=r"train.epochs: 1 -> 2"):
        train.train_and_evaluate(config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(config, tmp_path):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    run = train._Run(config, tmp_path, stop.StopRequest())
    with run.checkpoints:
        poisoned = jax.tree.map(lambda p: p * np.float32("nan"), run.state.params)
        run.state = run.state.replace(params=poisoned)
        config.train.epochs = 2
        with pytest.raises(TrainingError, match=r"not finite at step 4 \(epoch 2\)"):
            run.finish()
    assert checkpoint.read_progress(tmp_path)["history"][-1]["epoch"] == 1


@pytest.mark.parametrize("when", [1, 4, 6])  # 4: the last step of an epoch
def test_a_run_asked_to_stop_after_any_step_loses_nothing(finished, tmp_path, monkeypatch, when):
    config, _, results = finished
    wait_for_step = train._Run._wait_for_step

    def asked(run, progress):
        wait_for_step(run, progress)
        if int(run.state.step) == when:
            run.stop.signum = signal.SIGTERM

    monkeypatch.setattr(train._Run, "_wait_for_step", asked)
    with pytest.raises(stop.Interrupted, match="Stopped by SIGTERM at step"):
        train.train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    again = train.train_and_evaluate(config, tmp_path)
    assert again["resumed_at"] == [when]
    assert without_timings(again["history"]) == without_timings(results["history"])
    assert again["predictions"] == results["predictions"]


def test_patience_ends_a_run_that_learns_nothing(config, tmp_path):
    config.train.learning_rate = 0.0
    config.train.epochs = 20
    config.train.patience = 2
    results = train.train_and_evaluate(config, tmp_path)
    assert results["epochs_run"] == 3
    assert results["best_epoch"] == 1  # the earliest of equals
    again = train.train_and_evaluate(config, tmp_path)
    assert again["epochs_run"] == 3


def test_training_metrics_without_dropout_each_epoch_when_asked_for(config, tmp_path):
    config.train.eval_on_train = True
    results = train.train_and_evaluate(config, tmp_path)
    best = results["history"][results["best_epoch"] - 1]
    assert best["train/accuracy"] == results["metrics"]["train"]["accuracy"]


def test_class_weights_and_smoothing_change_what_is_learned(config, tmp_path):
    plain = train.train_and_evaluate(config, tmp_path / "a")
    config.train.class_weights = "balanced"
    config.train.label_smoothing = 0.1
    other = train.train_and_evaluate(config, tmp_path / "b")
    assert plain["history"] != other["history"]


def test_two_runs_on_one_folder_are_refused(config, tmp_path):
    with (
        workdir.locked(tmp_path),
        pytest.raises(WorkdirError, match=r"another run is using .*--workdir"),
    ):
        train.train_and_evaluate(config, tmp_path)


def test_more_images_a_batch_than_there_are_is_an_error(config, tmp_path):
    config.train.batch_size = 128
    with pytest.raises(ValueError, match="batch_size is 128, but the train split has 70"):
        train.train_and_evaluate(config, tmp_path)


def test_a_batch_that_does_not_divide_names_the_numbers_that_do(config, tmp_path):
    config.train.devices = 3
    with pytest.raises(ValueError, match=r"16 does not divide over 3 devices.*1, 2, 4, 8"):
        train.train_and_evaluate(config, tmp_path)


def test_a_run_goes_on_with_its_number_of_devices(config, tmp_path, caplog):
    config.train.devices = 2
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    config.train.devices = 0
    config.train.epochs = 2
    assert train.train_and_evaluate(config, tmp_path)["devices"] == 2
    config.train.devices = 8
    config.train.epochs = 3
    assert train.train_and_evaluate(config, tmp_path)["devices"] == 8
    assert "8 devices instead of 2" in caplog.text


def test_going_on_with_other_convolutions_is_told(config, tmp_path, caplog, monkeypatch):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    monkeypatch.setattr(train.native, "convolutions", lambda: "other")
    config.train.epochs = 2
    train.train_and_evaluate(config, tmp_path)
    assert "Going on with other convolutions instead of" in caplog.text


def test_other_data_than_the_runs_own_is_refused(config, tmp_path, dataset):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    other = tmp_path / "other"
    target = other / "synthetic_faces" / VERSIONS["synthetic_faces"] / "arrays"
    splits = {n: (s.images, s.labels, s.ids) for n, s in dataset.splits.items()}
    source = {"name": "synthetic_faces", "kind": "synthetic_faces", "sha256": "1" * 64}
    arrays.write_arrays(target, splits, source)
    config.data.data_dir = str(other)
    config.train.epochs = 2
    with pytest.raises(TrainingError, match="on other data"):
        train.train_and_evaluate(config, tmp_path)


def test_evaluate_best_gives_the_records_numbers_and_counts_openings(finished):
    config, folder, results = finished
    assert train.evaluate_best(config, folder, "valid") == results["metrics"]["valid"]
    assert workdir.read_json(folder / "test_evaluations.json") == 1
    assert train.evaluate_best(config, folder, "test") == results["metrics"]["test"]
    assert workdir.read_json(folder / "test_evaluations.json") == 2


def test_evaluating_before_training_says_what_to_do(config, tmp_path):
    with pytest.raises(TrainingError, match="train first"):
        train.evaluate_best(config, tmp_path / "nothing", "valid")
