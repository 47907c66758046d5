import re

import numpy as np
import pytest
from test_factors import write_records

from fer_jax.report import ablation
from fer_jax.study import design
from fer_jax.study.plan import ROOT
from fer_jax.study.table import load

STUDY = ROOT / "experiments" / "compact_ablation.py"
MUON = ROOT / "experiments" / "compact_muon.py"


@pytest.fixture(scope="module")
def cells():
    return design.cells(design.load_study(STUDY))


def written(folder, cells, change, **options):
    """Records of an ablation: test stays closed, `change` is what a cell adds to valid."""
    write_records(folder, cells, running=change, test=change, opened=False, **options)
    return load(folder)


def final(valid, epochs=40):
    """A record of the recipe at its whole length."""
    return {
        "config": {"train": {"epochs": epochs}},
        "metrics": {"valid": {"accuracy": valid, "loss": 0.8}},
        "history": [{"train_running/accuracy": valid + 0.05}],
    }


def test_an_ingredient_is_told_from_none_by_valid_alone(tmp_path, cells):
    def change(levels):
        worth = {"muon": 0.05, "adam": -0.05}
        return worth.get(levels["optimizer"], 0.0)

    shown = ablation.blocks(written(tmp_path / "records", cells, change), [])
    table = shown["ablation-effects"].splitlines()
    assert table[0] == "| Instead | running train | train | valid | time (core-seconds) |"
    assert table[2].startswith("| optimizer: muon | **+5.0 (")
    assert table[-1].startswith("| optimizer: adam | **-5.0 (")
    assert len(table) == 2 + len(cells) - 3, "the base and the two other lengths are no ingredients"
    assert shown["ablation-words"].startswith(
        "Better than the recipe: optimizer: muon. Worse: optimizer: adam. Not told from it: "
    )
    assert "Beside what a seed shifts all runs by, a single run" in shown["ablation-words"]
    assert not any("test" in text for text in shown.values())


@pytest.mark.parametrize(
    ("worth", "at_40", "said"),
    [
        ({"3": -0.04, "12": 0.02}, 0.53, "less than the one before. The next, 80 epochs"),
        ({"3": -0.01, "12": 0.02}, 0.53, "gains do not shrink steadily"),
    ],
)
def test_the_next_doubling_is_bounded_by_the_last(tmp_path, cells, worth, at_40, said):
    frame = written(tmp_path / "records", cells, lambda levels: worth.get(levels["epochs"], 0.0))
    shown = ablation.blocks(frame, [final(at_40)])["ablation-length"]
    rows = [line.split(" | ") for line in shown.splitlines()[2:6]]
    assert [row[0].strip("| ") for row in rows] == ["3", "6", "12", "40"]
    assert rows[2][-2] == "+2.0 points"
    assert said in shown


def test_the_bound_is_the_last_gain_on_top_of_the_last_accuracy(tmp_path, cells):
    worth = {"3": -0.04, "12": 0.03}
    frame = written(tmp_path / "records", cells, lambda levels: worth.get(levels["epochs"], 0.0))
    at_12 = frame[frame["run"] == "epochs=12"]["valid/accuracy"].mean()
    shown = ablation.blocks(frame, [final(at_12 + 0.02, epochs=24)])["ablation-length"]
    assert "+2.0 points on valid" in shown
    bound = float(re.search(r"below (\d\.\d+) on valid", shown)[1])
    assert bound == pytest.approx(at_12 + 0.04, abs=6e-4)


def lengths(tmp_path, cells, final, kept):
    """What is said of the lengths in `kept`, which all come to the same."""
    frame = written(tmp_path / "records", cells, None)
    frame["valid/accuracy"] = frame["train_running/accuracy"] = 0.5
    return ablation.length(frame[frame["epochs"].isin(kept)], final)


def test_the_recipes_own_row_is_left_out_where_the_study_has_its_length(tmp_path, cells):
    shown = lengths(tmp_path, cells, [final(0.9, epochs=12)], [3, 6, 12])
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:5]] == ["| 3", "| 6", "| 12"]
    assert "0.900" not in shown


def test_one_gain_alone_promises_nothing(tmp_path, cells):
    shown = lengths(tmp_path, cells, [final(0.6)], [6])
    assert shown.endswith("one gain alone says nothing of the next.")


def test_equal_gains_do_not_shrink(tmp_path, cells):
    shown = lengths(tmp_path, cells, [], [3, 6, 12])
    assert "+0.0 points on valid" in shown
    assert "gains do not shrink steadily" in shown


def test_without_enough_runs_no_number_is_shown(tmp_path, cells):
    assert set(ablation.blocks(None, [])) == set(ablation.BLOCKS)
    assert "not measured yet" in ablation.blocks(load(tmp_path), [])["ablation-effects"]
    frame = written(tmp_path / "records", cells, None, seeds=1)
    assert "Too few runs" in ablation.blocks(frame, [])["ablation-effects"]


def test_runs_with_muon_stand_beside_the_recipe(tmp_path):
    declared = design.cells(design.load_study(MUON))
    assert "not measured yet" in ablation.muon(load(tmp_path), [])
    frame = written(tmp_path / "records", declared, lambda levels: 0.0, seeds=1)
    by_length = frame["run"].str.contains("epochs=30")
    frame["epochs_run"] = np.where(by_length, 30, 16)
    frame["valid/accuracy"] = np.where(by_length, 0.67, 0.66)
    frame["valid/loss"] = 0.9
    frame["train_running/accuracy"] = 0.71
    rows = ablation.muon(frame, [final(0.65)]).splitlines()[2:]
    assert rows == [
        "| Muon, weight_decay 0.0005, augmentation light, teaching none "
        "| 16 | 0.660 | 0.900 | 0.710 | 1 |",
        "| Muon, weight_decay 0.02, augmentation light, teaching none "
        "| 16 | 0.660 | 0.900 | 0.710 | 1 |",
        "| Muon, weight_decay 0.02, augmentation strong, teaching none "
        "| 30 | 0.670 | 0.900 | 0.710 | 1 |",
        "| Muon, weight_decay 0.02, augmentation light, teaching ensemble "
        "| 30 | 0.670 | 0.900 | 0.710 | 1 |",
        "| SGD, the recipe itself | 40 | 0.650 | 0.800 | 0.700 | 1 |",
    ]


@pytest.mark.parametrize("path", [STUDY, MUON], ids=lambda path: path.stem)
def test_committed_records_are_of_the_declared_study_and_did_not_open_test(path):
    folder = ROOT / "results" / path.stem
    frame = load(folder)
    found = list(zip(frame["run"], frame["seed"], strict=True))
    assert len(found) == len(set(found)) == len(list(folder.glob("*.json"))) > 0
    assert {name for name, _ in found} <= {c.name for c in design.cells(design.load_study(path))}
    assert set(frame["test_evaluations"]) == {0}
