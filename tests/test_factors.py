import json
import re

import numpy as np
import pandas as pd
import pytest

from fer_jax.errors import RecordError
from fer_jax.report import factor_figures, factors
from fer_jax.study import design, effects
from fer_jax.study.plan import ROOT
from fer_jax.study.table import crossed, levels, load, one_at_a_time, write_csv

SEEDS = 2


@pytest.fixture(scope="module")
def cells():
    return design.cells(design.load_study(ROOT / "experiments" / "factors.py"))


def write_records(
    folder, cells, running=None, test=None, time=None, noise=0.002, seeds=SEEDS, opened=True
):
    """Writes records of a study; effects are functions from a cell's levels to a change.

    What chance adds to a cell with one seed it takes away with the next, so that the means over
    seeds are exact, and yet the error is there.
    """
    folder.mkdir(exist_ok=True)
    chance = np.random.default_rng(0).normal(0, noise, (len(cells), 3))
    nothing = dict.fromkeys(("running", "test", "time"), lambda levels: 0.0)
    given = {"running": running, "test": test, "time": time}
    change = nothing | {name: f for name, f in given.items() if f}
    for seed in range(seeds):
        for cell, (on_running, on_test, on_time) in zip(cells, chance * (-1) ** seed, strict=True):
            of = {name: f(cell.levels) for name, f in change.items()}
            row = {
                "train_running/accuracy": 0.6 + of["running"] + on_running,
                "train_running/loss": 1.0,
                "valid/accuracy": 0.5,
                "valid/loss": 1.2,
                "epoch": 1,
            }
            held_out = 0.5 + of["test"] + 0.01 * seed + on_test
            metrics = {
                split: {"accuracy": accuracy, "loss": 1.2, "count": 3589}
                for split, accuracy in (
                    ("train", 0.65 + of["running"]),
                    ("valid", held_out - 0.01),
                    ("test", held_out),
                )
                if opened or split != "test"
            }
            train_s = 100 * 2 ** of["time"] * np.exp(on_time)
            record = {
                "levels": cell.levels,
                "experiment": cell.config.experiment,
                "seed": seed,
                "config": {
                    "data": {},
                    "model": {},
                    "train": {"epochs": 1, "optimizer": "adam", "learning_rate": 0.001},
                },
                "dataset": {"name": "fer2013", "count": {}},
                "device": {"platform": "cpu", "kind": "a processor", "count": 1, "cpu_cores": 1},
                "test_evaluations": int(opened),
                "epochs_run": 1,
                "best_epoch": 1,
                "history": [row],
                "metrics": metrics,
                "seconds": {"train": train_s / 2, "train_cpu": train_s},
            }
            (folder / f"{cell.name}_seed{seed}.json").write_text(json.dumps(record))
    return folder


def table(folder, cells, **options):
    return load(write_records(folder / "records", cells, **options))


def shown(frame):
    return "\n\n".join(factors.blocks(frame).values())


def claim(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"* **{name}"))


def numbers(text):
    return [float(x) for x in re.findall(r"[+-]?\d+\.\d+", text)]


def test_a_run_is_a_row_with_numbers_where_levels_are_numbers(tmp_path, cells):
    frame = table(tmp_path, cells)
    assert len(frame) == SEEDS * len(cells)
    assert levels(frame, "conv_layers") == [2, 3, 4, 6]
    assert levels(frame, "dropout") == [0.0, 0.2, 0.5]
    assert levels(frame, "augment") == ["none", "flip", "flip+shift+rotate"]
    assert set(one_at_a_time(frame, "epochs")["run"]) == {"base", "epochs=5", "epochs=20"}
    write_csv(frame, tmp_path / "factors.csv")
    lines = (tmp_path / "factors.csv").read_text().splitlines()
    assert len(lines) == len(frame) + 1
    assert lines[0].startswith("run,seed,conv_layers,dropout,batch_size,epochs,hidden_layers,augm")


def test_only_layers_and_dropout_were_crossed(tmp_path, cells):
    assert crossed(table(tmp_path, cells)) == [(("conv_layers", 2, 4), ("dropout", 0.0, 0.5))]


@pytest.mark.slow
def test_the_whole_study_tells_the_interaction_of_each_pair(tmp_path):
    cells = design.cells(design.load_study(ROOT / "experiments" / "factors_full.py"))
    frame = table(tmp_path, cells)
    pairs = [{a[0], b[0]} for a, b in crossed(frame)]
    assert len(pairs) == 15
    text = shown(frame)
    assert text.count("| interaction of ") == 15
    assert (("conv_layers", 2, 6), ("dropout", 0.0, 0.5)) in crossed(frame)


def test_a_known_effect_is_recovered_and_is_said_to_hold(tmp_path, cells):
    def more(levels):
        return 0.03 * (int(levels["conv_layers"]) - 2)

    text = shown(table(tmp_path, cells, running=more, test=more))
    line = claim(text, "More convolution layers help")
    assert "(2 → 6): **holds on test data and on training data**" in line
    training, test = re.findall(r"[+-]\S+ \([^)]*\)", line)
    for found in (training, test):
        estimate, low, high = numbers(found)
        assert estimate == 12
        assert low < 12 < high
        assert high - low < 1.5
    assert "6 is best on valid" in line


def test_intervals_hold_the_true_effect_about_as_often_as_they_say(cells):
    rows = [{"seed": s, **cell.levels} for s in range(SEEDS) for cell in cells]
    frame = pd.DataFrame(rows)
    base = next(cell.levels for cell in cells if cell.name == "base")
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        fit = effects.Fit(
            frame, (frame["epochs"] == "20") * 1.0 + draw.normal(size=len(rows)), base
        )
        found = fit.difference({"epochs": "5"}, {"epochs": "20"})
        held += found.low <= 1 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_no_effect_is_undecided(tmp_path, cells):
    text = shown(table(tmp_path, cells, noise=0.01))
    for name in factors.CLAIMS.values():
        assert ": **undecided**." in claim(text, name)
    assert ": **undecided**." in claim(text, "Hidden fully connected layers cost time")


def test_an_effect_on_training_alone_is_said_to_be_on_training_alone(tmp_path, cells):
    def more(levels):
        return 0.01 * int(levels["epochs"])

    text = shown(table(tmp_path, cells, running=more))
    line = claim(text, "More epochs help")
    assert "**holds on training data only; on test data it is undecided**" in line
    text = shown(table(tmp_path, cells, running=more, test=lambda x: -more(x)))
    line = claim(text, "More epochs help")
    assert "**holds on training data only; on test data the opposite holds**" in line
    assert ": **undecided**." in claim(text, "More dropout helps")


@pytest.mark.parametrize(
    ("training", "test", "said"),
    [
        (1, 1, "holds on test data and on training data"),
        (0, 1, "holds on test data; undecided on training data"),
        (-1, 1, "holds on test data, though on training data the opposite holds"),
        (1, 0, "holds on training data only; on test data it is undecided"),
        (0, 0, "undecided"),
        (-1, 0, "undecided on test data; on training data the opposite holds"),
        (1, -1, "holds on training data only; on test data the opposite holds"),
        (0, -1, "does not hold: on test data the opposite holds"),
        (-1, -1, "does not hold: on test data the opposite holds"),
    ],
)
def test_every_verdict(training, test, said):
    effect = {s: effects.Effect(s * 1.0, s - 0.5, s + 0.5) for s in (-1, 0, 1)}
    assert factors.verdict(effect[training], effect[test]) == said


def test_an_interaction_is_recovered_with_its_sign(tmp_path, cells):
    def more(levels):
        return 0.05 * (levels["conv_layers"] == "4") * float(levels["dropout"]) / 0.5

    text = shown(table(tmp_path, cells, test=more))
    assert "* The effect of dropout on test accuracy rises with convolution layers: +" in text
    row = next(x for x in text.splitlines() if x.startswith("| interaction of convolution layers"))
    estimate, low, high = numbers(row.split("|")[5])
    assert low < estimate == 5 < high
    at_four = next(x for x in text.splitlines() if "at convolution layers 4" in x)
    assert numbers(at_four.split("|")[5])[0] == 5
    at_two = next(x for x in text.splitlines() if "at convolution layers 2" in x)
    assert numbers(at_two.split("|")[5])[0] == 0


def test_no_interaction_is_undecided(tmp_path, cells):
    text = shown(table(tmp_path, cells, noise=0.01))
    assert "* Whether the effect of dropout on test accuracy depends on convolution lay" in text


def test_time_is_a_ratio(tmp_path, cells):
    def double(levels):
        return float(levels["hidden_layers"] == "2")

    text = shown(table(tmp_path, cells, time=double))
    line = claim(text, "Hidden fully connected layers cost time")
    assert "**holds**" in line
    ratio, low, high = numbers(line)
    assert low <= ratio == 2 <= high
    assert "core-seconds" in line


def test_the_text_states_design_size_and_limits(tmp_path, cells):
    text = shown(table(tmp_path, cells))
    assert "32 runs on fer2013 (a processor, cores: 1): 16 configurations, 2 seeds each" in text
    assert "Varied together: convolution layers with dropout." in text
    assert "learning rate is 0.001 throughout (adam)" in text
    assert "17 degrees of freedom" in text  # 32 runs less a mean, 13 levels and a seed
    assert "0.83 points from 3,589 images" in text


def test_too_few_runs_give_means_and_no_interval(tmp_path, cells):
    assert factors.blocks(load(tmp_path))["claims"] == "The factor study: not measured yet."
    one = shown(table(tmp_path, cells, seeds=1))
    assert "Too few runs for intervals yet: all are of one seed" in one
    assert "| `base` | 0.60" in one
    part = shown(load(write_records(tmp_path / "part", cells[:2])))
    assert "the base has no record yet" in part
    part = shown(load(write_records(tmp_path / "few", cells[2:4], seeds=2)))
    assert "More epochs help**: not measured yet" in part


def test_a_study_that_is_half_done_is_analysed(tmp_path, cells):
    write_records(tmp_path / "records", cells)
    for cell in cells[5:]:
        (tmp_path / "records" / f"{cell.name}_seed1.json").unlink()
    text = shown(load(tmp_path / "records"))
    assert "1 to 2 seeds each" in text
    assert "More epochs help** (5 → 20)" in text


def test_records_of_two_studies_are_refused(tmp_path, cells):
    folder = write_records(tmp_path / "records", cells)
    change(folder / "base_seed0.json", levels={"epochs": "5"})
    with pytest.raises(RecordError, match="studies with different factors"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs_run": 2}, r"base_seed0\.json .*: history has 1 of 2 epochs"),
        ({"seconds": {"train": 1.0}}, r"base_seed0\.json .*: train_cpu is missing"),
    ],
)
def test_a_record_that_is_not_whole_is_left_out_in_a_line(
    tmp_path, cells, changes, message, caplog
):
    folder = write_records(tmp_path / "records", cells)
    change(folder / "base_seed0.json", **changes)
    assert len(load(folder)) == SEEDS * len(cells) - 1
    [line] = caplog.messages
    assert re.search(message, line)


def change(path, **changes):
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.slow
def test_figures_are_there_and_the_same_each_time(tmp_path, cells):
    frame = table(tmp_path, cells)
    drawn = factor_figures.drawings(frame)
    assert list(drawn) == ["factors_accuracy", "factors_time", "factors_interaction"]
    for name, again in factor_figures.drawings(frame).items():
        assert again.svg() == drawn[name].svg()
    assert factor_figures.drawings(load(tmp_path / "nothing")) == {}


def test_committed_records_are_all_of_the_declared_study(cells):
    frame = load(ROOT / "results" / "factors")
    found = set(zip(frame["run"], frame["seed"], strict=True))
    assert found == {(cell.name, seed) for cell in cells for seed in (0, 1)}
