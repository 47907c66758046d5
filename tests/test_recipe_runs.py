"""Whole runs with the strong recipes' ingredients: what their records say."""

import json

import numpy as np
import pytest

from fer_jax import ensemble, metrics, train
from fer_jax.data import select
from fer_jax.errors import TrainingError
from fer_jax.runs import record

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run(config, folder, **fields):
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    train.train_and_evaluate(config, folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_that_leaves_test_closed_says_nothing_about_it(config, tmp_path):
    found = run(config, tmp_path / "run", **{"eval.open_test": False, "train.epochs": 1})
    assert found["test_evaluations"] == 0
    assert set(found["metrics"]) == {"train", "valid"}
    assert set(found["predictions"]) == {"valid"}
    assert not list((tmp_path / "run").glob("*test*"))
    record.read(tmp_path / "run" / "results.json")


@pytest.mark.slow
def test_views_stand_beside_the_plain_predictions(config, dataset, tmp_path):
    plain = run(config, tmp_path / "plain", **{"train.epochs": 1})
    found = run(config, tmp_path / "views", **{"eval.views": "flip"})
    assert found["metrics"] == plain["metrics"]
    assert found["test_evaluations"] == 1
    assert "views" not in plain
    assert found["views"]["name"] == "flip"
    assert set(found["views"]["metrics"]) == {"valid", "test"}
    labels, probabilities = record.decode_predictions(found["views"]["predictions"]["valid"])
    expected = metrics.compute(labels, np.log(probabilities))
    assert found["views"]["metrics"]["valid"]["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert found["views"]["predictions"] != found["predictions"]


@pytest.mark.slow
def test_a_run_is_taught_combined_and_goes_on_to_the_same_bits(config, dataset, tmp_path):
    teacher = {"train.epochs": 1, "eval.train_predictions": True, "train.ema_decay": 0.5}
    for seed in range(2):
        found = run(config, tmp_path / f"t{seed}", seed=seed, **teacher)
        kept, _ = record.decode_predictions(found["predictions"]["train"])
        np.testing.assert_array_equal(kept, dataset.splits["train"].labels)

    members = tuple(str(tmp_path / f"t{seed}") for seed in range(2))
    whole = run(config, tmp_path / "ensemble", **{"ensemble.members": members})
    assert [m["seed"] for m in whole["members"]] == [0, 1]
    assert set(whole["metrics"]) == {"train", "valid", "test"}
    assert whole["test_evaluations"] == 1
    assert whole["config"]["ensemble"]["members"] == ["t0", "t1"]
    record.read(tmp_path / "ensemble" / "results.json")
    # It is not repeated, and another one does not take its folder.
    assert run(config, tmp_path / "ensemble") == whole
    with pytest.raises(TrainingError, match="another configuration"):
        run(config, tmp_path / "ensemble", **{"eval.average": "logits"})

    taught = {
        "ensemble.members": (),
        "eval.average": "probabilities",
        "eval.train_predictions": False,
        "train.teachers": members,
        "train.distill_weight": 0.7,
        "train.temperature": 2.0,
        "train.epochs": 2,
        "train.patience": 0,
        "train.ema_decay": 0.0,
        "data.pipeline": "stream",
    }
    student = run(config, tmp_path / "student", **taught)
    assert [t["seed"] for t in student["teachers"]] == [0, 1]
    assert student["config"]["train"]["teachers"] == ["t0", "t1"]
    untaught = run(
        config, tmp_path / "untaught", **{"train.teachers": (), "train.distill_weight": 0.0}
    )
    assert untaught["history"][0]["valid/loss"] != student["history"][0]["valid/loss"]

    # Stopped half-way, the teachers gone meanwhile.
    run(config, tmp_path / "again", **taught | {"train.epochs": 1})
    for seed in range(2):
        (tmp_path / f"t{seed}").rename(tmp_path / f"gone{seed}")
    again = run(config, tmp_path / "again", **{"train.epochs": 2})
    assert again["resumed_at"]
    for split in ("valid", "test"):
        assert again["metrics"][split] == student["metrics"][split]
    assert again["teachers"] == student["teachers"]


@pytest.mark.slow
def test_a_teacher_without_predictions_on_train_is_asked(config, dataset, tmp_path):
    from fer_jax import teachers

    found = run(config, tmp_path / "t0", **{"train.epochs": 1, "train.ema_decay": 0.5})
    config.train.ema_decay = 0.0
    kept = run(config, tmp_path / "t1", **{"train.ema_decay": 0.5, "eval.train_predictions": True})
    assert found["metrics"] == kept["metrics"]
    for name in ("t0", "t1"):
        config.train.teachers = (str(tmp_path / name),)
        soft = teachers.soft_labels(config, dataset, tmp_path / f"student_{name}")
        expected = np.exp(
            ensemble.decode(kept["predictions"]["train"], dataset.splits["train"].labels)
        )
        np.testing.assert_allclose(soft.probabilities, expected, atol=1e-3)


@pytest.mark.slow
def test_a_run_is_fitted_on_what_is_chosen(config, dataset, tmp_path):
    found = run(config, tmp_path / "fold", **{"train.epochs": 1, "train.fold": "0/2"})
    parts = select.parts(dataset.splits["train"], 2)
    assert found["train_images"] == np.sum(parts != 0)
    assert found["metrics"]["train"]["count"] == len(parts)
