import dataclasses
import errno
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers import arrays_of, assert_same, flip_bit, stop_after, tiny_config, without_timings

from fer_jax import config as config_lib
from fer_jax import evaluate, loop, metrics, train
from fer_jax.data import arrays
from fer_jax.data.dataset import VERSIONS
from fer_jax.errors import CheckpointError, ConfigError, TrainingError, WorkdirError
from fer_jax.runs import checkpoint, openings, record, stop, workdir

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A finished run of three epochs: (configuration, folder, record)."""
    with jax.numpy_dtype_promotion("standard"):
        config = tiny_config(config_lib.get_config(), data_dir)
        config.train.epochs = 3
        folder = tmp_path_factory.mktemp("finished")
        return config, folder, train.train_and_evaluate(config, folder)


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
    assert grown["test_evaluations"] == 1  # the best of five epochs is the best of three
    assert_same(arrays_of(tmp_path / "grown"), arrays_of(tmp_path / "whole"))


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


@pytest.mark.slow
def test_epochs_may_not_grow_where_the_schedule_depends_on_them(config, tmp_path):
    config.train.schedule = "cosine"
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    config.train.epochs = 2
    with pytest.raises(TrainingError, match=r"train.epochs: 1 -> 2"):
        train.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(config, tmp_path):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    model, mesh = loop.create_network(config)
    training = loop.create_training(config, model, mesh, np.zeros(70, np.uint8))
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        state, progress = checkpoints.restore(training.create_state(), 4)
        params = jax.tree.map(lambda p: p * np.float32("nan"), state.params)
        checkpoints.save(state.replace(step=np.int32(5), params=params), progress, None)
    config.train.epochs = 2
    with pytest.raises(TrainingError, match=r"not finite at step 5 \(epoch 2\)"):
        train.train_and_evaluate(config, tmp_path)
    assert checkpoint.read_progress(tmp_path)["history"][-1]["epoch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 4, 6])  # 4: the last step of an epoch
def test_a_run_asked_to_stop_after_any_step_loses_nothing(finished, tmp_path, when):
    config, _, results = finished
    with pytest.raises(stop.Interrupted, match="Stopped by SIGTERM at step"):
        train.train_and_evaluate(config, tmp_path, stop_after(when))
    before = checkpoint.read_progress(tmp_path)["seconds"]
    again = train.train_and_evaluate(config, tmp_path)
    assert again["resumed_at"] == [when]
    assert without_timings(again["history"]) == without_timings(results["history"])
    assert again["predictions"] == results["predictions"]
    # The seconds of both sessions add up.
    for name in ("train", "compile", "load", "total"):
        assert again["seconds"][name] > before[name] > 0
    spans = ("load", "compile", "train", "evaluate", "checkpoint")
    assert again["seconds"]["total"] >= sum(again["seconds"][name] for name in spans)


def test_every_step_is_seen_once(config, tmp_path):
    seen = []
    train.train_and_evaluate(config, tmp_path, lambda state: seen.append(int(state.step)))
    assert seen == list(range(1, 9))


def test_patience_ends_a_run_that_learns_nothing(config, tmp_path):
    config.train.learning_rate = 0.0
    config.train.epochs = 20
    config.train.patience = 2
    results = train.train_and_evaluate(config, tmp_path)
    assert results["epochs_run"] == 3
    assert results["best_epoch"] == 1  # the earliest of equals
    again = train.train_and_evaluate(config, tmp_path)
    assert again["epochs_run"] == 3
    config.train.patience = 1
    with pytest.raises(TrainingError, match="patience 1 it would have ended after 2"):
        train.train_and_evaluate(config, tmp_path)


def test_training_metrics_without_dropout_each_epoch_when_asked_for(config, tmp_path):
    config.train.eval_on_train = True
    results = train.train_and_evaluate(config, tmp_path)
    best = results["history"][results["best_epoch"] - 1]
    assert best["train/accuracy"] == results["metrics"]["train"]["accuracy"]
    config.train.eval_on_train = False
    config.train.epochs = 3
    results = train.train_and_evaluate(config, tmp_path)
    assert ["train/loss" in row for row in results["history"]] == [True, True, False]


def test_test_stays_closed_when_it_is_told_to(config, tmp_path):
    config.eval.open_test = False
    results = train.train_and_evaluate(config, tmp_path)
    assert results["test_evaluations"] == 0
    assert "test" not in results["metrics"]
    assert not (tmp_path / openings.FILE).exists()
    with pytest.raises(ConfigError, match=r"open_test is False"):
        evaluate.evaluate_best(config, tmp_path, "test")


@pytest.mark.parametrize(
    ("field", "value"), [("class_weights", "balanced"), ("label_smoothing", 0.1)]
)
def test_class_weights_and_smoothing_change_what_is_learned(
    config, tmp_path, monkeypatch, dataset, field, value
):
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6], np.uint8).repeat(7)
    uneven = dataclasses.replace(dataset.splits["train"], labels=labels)
    splits = dataset.splits | {"train": uneven}
    monkeypatch.setattr(
        train, "load_dataset", lambda config: dataclasses.replace(dataset, splits=splits)
    )
    config.train.epochs = 1
    losses = []
    for folder in ("a", "b"):
        results = train.train_and_evaluate(config, tmp_path / folder)
        losses.append(results["metrics"]["valid"]["loss"])
        config.train[field] = value
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_signal_after_the_last_epoch_keeps_test_closed(config, tmp_path, monkeypatch):
    finish = train._finish

    def asked(run, *rest):
        run.stop.signum = signal.SIGTERM
        return finish(run, *rest)

    monkeypatch.setattr(train, "_finish", asked)
    with pytest.raises(stop.Interrupted, match="after the last epoch"):
        train.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / openings.FILE).exists()
    monkeypatch.undo()
    assert train.train_and_evaluate(config, tmp_path)["resumed_at"] == [8]


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


@pytest.mark.slow
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
    assert "Going on with 8 devices instead of 2" in caplog.text


@pytest.mark.slow
def test_going_on_with_other_convolutions_is_told(config, tmp_path, caplog, monkeypatch):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    monkeypatch.setattr(train.precision.native, "convolutions", lambda: "other")
    config.train.epochs = 2
    train.train_and_evaluate(config, tmp_path)
    assert "Going on with other convolutions instead of" in caplog.text


@pytest.mark.slow
def test_a_run_goes_on_with_the_devices_that_are_there(config, tmp_path, caplog, monkeypatch):
    config.train.devices = 0
    config.train.batch_size = 32
    config.train.epochs = 1
    assert train.train_and_evaluate(config, tmp_path)["devices"] == 2
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    assert evaluate.evaluate_best(config, tmp_path, "valid")["count"] == 21
    config.train.epochs = 2
    assert train.train_and_evaluate(config, tmp_path)["devices"] == 1
    assert "Going on with 1 devices instead of 2: from here on it rounds otherwise" in caplog.text


def test_fewer_epochs_than_are_done_are_refused(finished):
    config, folder, _ = finished
    shorter = config.copy_and_resolve_references()
    shorter.train.epochs = 2
    before = (folder / "results.json").read_bytes()
    with pytest.raises(TrainingError, match=r"a run of 3 epochs, but config.train.epochs is 2"):
        train.train_and_evaluate(shorter, folder)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"config": {}}'])
def test_what_is_no_record_is_named(finished, tmp_path, text):
    config, _, _ = finished
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(WorkdirError, match=r"results.json is not a run's record; move it away"):
        train.train_and_evaluate(config, tmp_path)


def test_a_refused_configuration_leaves_no_checkpoints(config, tmp_path):
    config.train.devices = 3
    with pytest.raises(ValueError, match="devices"):
        train.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_field_that_an_older_run_does_not_have_counts_as_its_default(finished, tmp_path):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path / "older")
    record = json.loads((tmp_path / "older" / "results.json").read_text())
    del record["config"]["augment"]["zoom"]
    del record["checksum"]
    workdir.write_json(tmp_path / "older" / "results.json", record)
    assert train.train_and_evaluate(config, tmp_path / "older") == record
    zoomed = config.copy_and_resolve_references()
    zoomed.augment.zoom = 0.5
    with pytest.raises(TrainingError, match=r"augment.zoom: 0.0 -> 0.5"):
        train.train_and_evaluate(zoomed, tmp_path / "older")


def test_other_data_than_the_runs_own_is_refused(config, tmp_path, dataset):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    other = tmp_path / "other"
    target = other / "synthetic_faces" / VERSIONS["synthetic_faces"] / "arrays"
    splits = {n: (s.images.copy(), s.labels, s.ids) for n, s in dataset.splits.items()}
    splits["train"][0][0, 0, 0] ^= 1
    source = {"name": "synthetic_faces", "kind": "synthetic_faces", "sha256": "1" * 64}
    arrays.write_arrays(target, splits, source)
    config.data.data_dir = str(other)
    for epochs in (1, 2):  # complete, or to go on
        config.train.epochs = epochs
        with pytest.raises(TrainingError, match="on other data"):
            train.train_and_evaluate(config, tmp_path)


def openings_of(folder):
    return json.loads((folder / openings.FILE).read_text())["openings"]


def test_evaluate_best_gives_the_records_numbers(finished, caplog):
    config, folder, results = finished
    for split in ("train", "valid", "test"):
        assert evaluate.evaluate_best(config, folder, split) == results["metrics"][split]
    assert caplog.text == ""
    assert len(openings_of(folder)) == 1  # the same opening


def test_test_is_opened_for_another_checkpoint_with_a_warning(finished, tmp_path, caplog):
    config, folder, results = finished
    shutil.copytree(folder, tmp_path / "copy")
    best = results["best_step"]
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / str(best))
    evaluate.evaluate_best(config, tmp_path / "copy", "test")
    assert "Test was opened before, for another checkpoint of this run: this is" in caplog.text
    assert openings_of(tmp_path / "copy")[0]["epoch"] == results["best_epoch"]
    assert len(openings_of(tmp_path / "copy")) == 2


def test_a_run_killed_before_its_record_opens_test_once(finished, tmp_path):
    config, folder, results = finished
    shutil.copytree(folder, tmp_path / "killed")
    (tmp_path / "killed" / "results.json").unlink()
    again = train.train_and_evaluate(config, tmp_path / "killed")
    assert again["test_evaluations"] == 1
    assert (again["metrics"], again["predictions"]) == (results["metrics"], results["predictions"])


def test_evaluation_compares_with_the_history(finished, tmp_path, caplog, monkeypatch):
    config, folder, results = finished
    row = results["history"][results["best_epoch"] - 1]
    other = metrics.of_split
    monkeypatch.setattr(metrics, "of_split", lambda *a: other(*a) | {"accuracy": 0.123})
    evaluate.evaluate_best(config, folder, "valid")
    accuracy = f"{row['valid/accuracy']:.4f}"
    assert f"Accuracy on valid is 0.1230, but was {accuracy} when" in caplog.text


def test_a_damaged_best_checkpoint_is_named(finished, tmp_path):
    config, folder, results = finished
    shutil.copytree(folder, tmp_path / "damaged")
    best = tmp_path / "damaged" / "checkpoints" / str(results["best_step"])
    flip_bit(best, every=64)
    with pytest.raises(CheckpointError, match=rf"{best} (cannot be read|is damaged)"):
        evaluate.evaluate_best(config, tmp_path / "damaged", "valid")


@pytest.mark.slow
def test_a_record_that_cannot_be_written_loses_nothing(finished, tmp_path, monkeypatch):
    config, _, results = finished

    def full(_, path):
        raise workdir.unwritable(path, OSError(errno.ENOSPC, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr(record.plots, "learning_curves", full)
        with pytest.raises(
            WorkdirError, match=r"cannot write .*No space left.*All epochs are kept"
        ):
            train.train_and_evaluate(config, tmp_path)
    again = train.train_and_evaluate(config, tmp_path)
    assert again["test_evaluations"] == 1
    assert again["metrics"] == results["metrics"]


def test_evaluating_before_training_says_what_to_do(config, tmp_path):
    with pytest.raises(TrainingError, match="train first"):
        evaluate.evaluate_best(config, tmp_path / "nothing", "valid")
