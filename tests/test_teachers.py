"""Soft labels from finished runs, and ensembles of them, from records written by hand."""

import dataclasses
import json

import numpy as np
import pytest

from fer_jax import ensemble, metrics, teachers
from fer_jax.data import dataset as datasets
from fer_jax.data import pipeline, select
from fer_jax.errors import RecordError, TrainingError, WorkdirError
from fer_jax.runs import record


def probabilities_of(dataset, split, seed):
    logits = np.random.default_rng(seed).normal(size=(len(dataset.splits[split].labels), 7))
    found = np.exp(logits)
    return (found / found.sum(axis=1, keepdims=True)).astype(np.float32)


def write_run(folder, config, dataset, seed, splits=("train", "valid", "test"), **changes):
    """Writes the record of a run with random predictions; returns them."""
    told = {split: probabilities_of(dataset, split, 10 * seed + len(split)) for split in splits}
    found = {
        "experiment": "tiny",
        "seed": seed,
        "config": record.describe_config(config),
        "dataset": record.describe_dataset(dataset),
        "parameters": 100,
        "metrics": {},
        "predictions": {
            split: record.encode_predictions(dataset, split, p) for split, p in told.items()
        },
    } | changes
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    return told


def test_soft_labels_are_the_teachers_mean(config, dataset, tmp_path):
    told = [write_run(tmp_path / f"t{i}", config, dataset, i)["train"] for i in range(2)]
    config.train.teachers = (str(tmp_path / "t0"), str(tmp_path / "t1" / "results.json"))
    found = teachers.soft_labels(config, dataset, tmp_path / "student")
    np.testing.assert_allclose(found.probabilities, np.mean(told, axis=0), atol=1e-3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    assert [t["seed"] for t in found.teachers] == [0, 1]
    assert len({t["sha256"] for t in found.teachers}) == 2


def test_soft_labels_outlive_their_teachers(config, dataset, tmp_path):
    write_run(tmp_path / "t0", config, dataset, 0)
    config.train.teachers = (str(tmp_path / "t0"),)
    before = teachers.soft_labels(config, dataset, tmp_path / "student")
    (tmp_path / "t0").rename(tmp_path / "gone")
    after = teachers.soft_labels(config, dataset, tmp_path / "student")
    np.testing.assert_array_equal(before.probabilities, after.probabilities)
    assert before.teachers == after.teachers
    with pytest.raises(RecordError, match="holds no finished run"):
        teachers.soft_labels(config, dataset, tmp_path / "another")
    path = tmp_path / "student" / teachers.KEPT
    kept = json.loads(path.read_text(encoding="utf-8"))
    kept["probabilities"] = "AAAA" + kept["probabilities"][4:]
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(WorkdirError, match="is damaged"):
        teachers.soft_labels(config, dataset, tmp_path / "student")


@pytest.mark.parametrize("other", ["teacher", "data"])
def test_soft_labels_of_others_are_asked_for_again_or_refused(config, dataset, tmp_path, other):
    student = tmp_path / "student"
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write_run(tmp_path / folder / "t", config, dataset, i)
    config.train.teachers = (str(tmp_path / "a" / "t"),)
    before = teachers.soft_labels(config, dataset, student)
    kept = json.loads((student / teachers.KEPT).read_text(encoding="utf-8"))
    now = dataset
    if other == "teacher":  # of the same name
        config.train.teachers = (str(tmp_path / "b" / "t"),)
    else:
        now = dataclasses.replace(dataset, source_sha256="1" * 64, content="other")
        write_run(tmp_path / "t", config, now, 0)
        config.train.teachers = (str(tmp_path / "t"),)
    after = teachers.soft_labels(config, now, student)
    again = json.loads((student / teachers.KEPT).read_text(encoding="utf-8"))
    if other == "teacher":
        assert after.teachers[0]["sha256"] != before.teachers[0]["sha256"]
    else:
        assert (again["content"], again["said"]) == ("other", kept["said"])

    config.train.teachers = (str(tmp_path / "a" / "t"),)
    (student / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"other teachers of the same names.*--workdir"):
        teachers.soft_labels(config, dataset, student)


def test_a_data_set_is_the_same_however_it_is_wrapped(config, dataset, tmp_path):
    write_run(tmp_path / "t0", config, dataset, 0)
    unpacked = dataclasses.replace(dataset, source_sha256="1" * 64)
    assert ensemble.read_member(tmp_path / "t0", unpacked, "field")["seed"] == 0
    for content in ("other", ""):
        other = dataclasses.replace(unpacked, content=content)
        with pytest.raises(RecordError, match="trained on other data"):
            ensemble.read_member(tmp_path / "t0", other, "field")


def test_records_that_name_the_archive_alone_are_of_what_it_holds():
    [(archive, content)] = datasets._CONTENTS.items()
    unpacked = datasets.Dataset("fer2013", "jpeg", "1" * 64, {}, content=content)
    assert unpacked.is_of({"source_sha256": archive})
    assert not unpacked.is_of({"source_sha256": "2" * 64})


def test_a_teacher_with_a_fold_speaks_only_about_what_it_was_not_fitted_on(
    config, dataset, tmp_path
):
    told = []
    for i in range(2):
        config.train.fold = f"{i}/2"
        told.append(write_run(tmp_path / f"t{i}", config, dataset, i)["train"])
    config.train.fold = None
    config.train.teachers = (str(tmp_path / "t0"), str(tmp_path / "t1"))
    found = teachers.soft_labels(config, dataset, tmp_path / "student")
    parts = select.parts(dataset.splits["train"], 2)
    assert 0 < parts.sum() < len(parts)
    expected = np.where((parts == 0)[:, None], told[0], told[1])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)
    config.train.teachers = (str(tmp_path / "t0"),)
    with pytest.raises(TrainingError, match=f"about {parts.sum()} of the {len(parts)}"):
        teachers.soft_labels(config, dataset, tmp_path / "half")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softening_is_the_softmax_of_logits_over_the_temperature(temperature):
    logits = np.random.default_rng(0).normal(size=(6, 7))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    found = teachers.soften(softmax(logits).astype(np.float32), temperature)
    np.testing.assert_allclose(found, softmax(logits / temperature), atol=1e-6)


def test_a_run_on_other_data_is_no_teacher(config, dataset, tmp_path):
    other = dataclasses.replace(dataset, source_sha256="1" * 64, content="other")
    write_run(tmp_path / "t0", config, other, 0)
    config.train.teachers = (str(tmp_path / "t0"),)
    with pytest.raises(RecordError, match="trained on other data"):
        teachers.soft_labels(config, dataset, tmp_path / "student")


def test_a_record_without_predictions_on_train_says_what_to_do(config, dataset, tmp_path):
    write_run(tmp_path / "t0", config, dataset, 0, splits=("valid", "test"))
    config.train.teachers = (str(tmp_path / "t0" / "results.json"),)
    with pytest.raises(RecordError, match=r"--config\.eval\.train_predictions=True"):
        teachers.soft_labels(config, dataset, tmp_path / "student")


@pytest.mark.parametrize("how", ["probabilities", "logits"])
def test_an_ensemble_is_the_mean_of_its_members(config, dataset, tmp_path, how):
    told = [write_run(tmp_path / f"m{i}", config, dataset, i) for i in range(3)]
    config.ensemble.members = tuple(str(tmp_path / f"m{i}") for i in range(3))
    config.eval.average = how
    found = ensemble.combine(config, dataset)
    for split in ("train", "valid", "test"):
        members = np.float64([t[split] for t in told])
        mean = members.mean(0) if how == "probabilities" else np.exp(np.log(members).mean(0))
        mean /= mean.sum(axis=1, keepdims=True)
        _, kept = record.decode_predictions(found["predictions"][split])
        np.testing.assert_allclose(kept, mean, atol=2e-3)
        labels = dataset.splits[split].labels
        expected = metrics.compute(labels, np.log(mean))
        assert found["metrics"][split]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.05)
        assert found["metrics"][split]["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert found["parameters"] == 300
    assert len({m["sha256"] for m in found["members"]}) == 3


def test_an_ensemble_leaves_out_what_a_member_lacks_and_test_when_told(config, dataset, tmp_path):
    write_run(tmp_path / "m0", config, dataset, 0)
    write_run(tmp_path / "m1", config, dataset, 1, splits=("valid", "test"))
    config.ensemble.members = (str(tmp_path / "m0"), str(tmp_path / "m1"))
    assert set(ensemble.combine(config, dataset)["metrics"]) == {"valid", "test"}
    config.eval.open_test = False
    assert set(ensemble.combine(config, dataset)["metrics"]) == {"valid"}


def test_an_ensembles_views_are_its_members_views(config, dataset, tmp_path):
    told = [probabilities_of(dataset, "valid", seed) for seed in (7, 8)]
    for i, p in enumerate(told):
        packed = {"valid": record.encode_predictions(dataset, "valid", p)}
        views = {"name": "flip", "predictions": packed}
        write_run(tmp_path / f"m{i}", config, dataset, i, views=views)
    config.ensemble.members = (str(tmp_path / "m0"), str(tmp_path / "m1"))
    config.eval.views = "flip"
    found = ensemble.combine(config, dataset)["views"]
    assert found["name"] == "flip"
    _, kept = record.decode_predictions(found["predictions"]["valid"])
    np.testing.assert_allclose(kept, np.mean(told, axis=0), atol=2e-3)
    config.eval.views = "shifts"
    with pytest.raises(RecordError, match="has no predictions from the views 'shifts'"):
        ensemble.combine(config, dataset)


def test_what_a_record_rounded_to_zero_stays_finite(dataset):
    sure = np.zeros((len(dataset.splits["valid"].labels), 7), np.float32)
    sure[:, 0] = 1
    packed = record.encode_predictions(dataset, "valid", sure)
    assert np.isfinite(ensemble.decode(packed, dataset.splits["valid"].labels)).all()


@pytest.mark.slow
def test_soft_labels_travel_with_their_images(dataset):
    split = dataset.splits["train"]
    soft = np.random.default_rng(0).random((len(split.labels), 7)).astype(np.float32)
    taught = dataclasses.replace(split, soft=soft)
    keep = np.array([5, 3, 60])
    np.testing.assert_array_equal(select.take(taught, keep).soft, soft[keep])
    order = np.random.default_rng(1).permutation(len(split.labels)).astype(np.int32)
    batches = list(pipeline.stream_batches(taught, order, 16))
    for i, (images, (labels, given)) in enumerate(batches):
        rows = order[16 * i : 16 * (i + 1)]
        np.testing.assert_array_equal(images, split.images[rows])
        np.testing.assert_array_equal(labels, split.labels[rows])
        np.testing.assert_array_equal(given, soft[rows])
    assert len(batches) == 4
