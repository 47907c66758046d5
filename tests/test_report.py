import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from fer_jax import modes
from fer_jax.config import changed_fields
from fer_jax.data import dataset as datasets
from fer_jax.data import prepare, sources
from fer_jax.errors import DataError, DocumentError, RecordError
from fer_jax.report import (
    cost,
    duplicates,
    figures,
    html,
    markdown,
    page,
    paper,
    records,
    speed,
    statistics,
    tables,
    words,
)
from fer_jax.study.plan import ROOT, RUNS

LABELS = np.arange(14) % 7
CPU = {"platform": "cpu", "kind": "a processor", "cpu_cores": 2, "count": 1}
GPU = {"platform": "gpu", "kind": "a GPU", "cpu_cores": 16, "count": 1}


def packed(probabilities, labels=LABELS):
    return {
        "labels": "".join(map(str, labels)),
        "probabilities": base64.b64encode(np.asarray(probabilities, "<f2").tobytes()).decode(),
    }


def probabilities(classes, top=0.75):
    """Returns `[n, 7]` with probability `top` of the given classes."""
    found = np.full((len(classes), 7), (1 - top) / 6)
    found[np.arange(len(classes)), classes] = top
    return found


# What their files ask for; a run of all of them went to the end.
EPOCHS = defaultdict(lambda: 20, arch01=30, arch02_bs16=20, moran=30, mini_xception=30, compact=40)


def record(seed=0, accuracy=0.5, wrong=0, model=None, **changes):
    """Returns a record whose predictions are wrong on the first so many images."""
    experiment = changes.setdefault("experiment", "arch02_bs96")
    classes = np.where(np.arange(len(LABELS)) < wrong, (LABELS + 1) % 7, LABELS)
    numbers = {
        "accuracy": accuracy,
        "accuracy_unique": accuracy - 0.01,
        "one_vs_rest_accuracy": 1 - 2 * (1 - accuracy) / 7,
        "macro_f1": accuracy - 0.02,
        "loss": 1.25,
        "confusion": [[10 * (i == j) + 1 for j in range(7)] for i in range(7)],
        "count": len(LABELS),
    }
    history = [
        {
            "epoch": e,
            "train_running/accuracy": 0.3 * min(e, 3),
            "train_running/loss": 2.0 - 0.5 * min(e, 3),
            "valid/accuracy": 0.25 * min(e, 3),
            "valid/loss": 1.5,
        }
        for e in range(1, EPOCHS[experiment] + 1)
    ]
    return {
        "seed": seed,
        "config": {
            "seed": seed,
            "model": {"name": model or experiment},
            "data": {"partial": False},
            "train": {"epochs": 20, "patience": 0},
        },
        "dataset": {
            "name": "fer2013",
            "source_sha256": "ab",
            "count": dict.fromkeys(("train", "valid", "test"), len(LABELS)),
        },
        "metrics": dict.fromkeys(("train", "valid", "test"), numbers),
        "predictions": {"test": packed(probabilities(classes))},
        "history": history,
        "epochs_run": len(history),
        "best_epoch": 3,
        "test_evaluations": 1,
        "seconds": {"train": 90.0 + 60.0 * seed},
        "device": CPU,
    } | changes


def write(folder, *found):
    for i, one in enumerate(found):
        (folder / f"{i}.json").write_text(json.dumps(one), encoding="utf-8")


def document(sources):
    """Returns docs/reproduction.md as it would be made from other records."""
    text = page.PAGE.read_text(encoding="utf-8")
    return page.updated_page(text, sources, page.drawings(sources))


PUBLISHED = {
    "experiment": "mini_xception",
    "source": "where",
    "chosen_on": "what",
    "metrics": {"valid": {"accuracy": 0.653}, "test": {"accuracy": 0.657}},
    "predictions": {},
    "device": CPU,
}


def loaded(*found):
    """Returns runs as `load_runs` groups them."""
    runs = {}
    for one in found:
        runs.setdefault(one["experiment"], []).append(one)
    return runs


# What is committed


@pytest.fixture(scope="module")
def committed():
    return page.load()


@pytest.fixture(scope="module")
def drawn(committed):
    return page.drawings(committed)


MAKE = "run: uv run launch.py --mode=report"


def test_the_readme_says_what_the_records_say(committed):
    text = page.README.read_text(encoding="utf-8")
    assert page.updated_readme(text, committed) == text, MAKE


def test_the_committed_page_says_what_the_records_say(committed, drawn):
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.updated_page(text, committed, drawn) == text, MAKE


def test_the_prose_has_the_constants_of_the_code():
    text = " ".join(page.PAGE.read_text(encoding="utf-8").split())
    for said in (
        f"the first {figures.PER_CLASS} of each class",
        f"in {statistics.BINS} bins of equal width",
        f"The {figures.MISTAKES} test images of which",
        f"the {words.BEST_RELATED} best other ones",
    ):
        assert said in text


def test_the_committed_figures_are_drawn_from_what_the_records_give(drawn):
    folder = page.DOCS / "figures"
    data = (folder / "data.json").read_text(encoding="utf-8")
    assert json.loads(data) == json.loads(page.plotted(drawn)), MAKE
    assert {path.stem for path in folder.glob("*.svg")} == set(drawn)
    for name, drawing in drawn.items():
        svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
        assert figures.digest(drawing.data) in svg


def test_no_committed_record_is_left_out(committed):
    found = sum(map(len, committed.runs.values()))
    assert found == len(list(RUNS.rglob("*.json")))
    assert len(committed.factors) == len(list(page.FACTORS.glob("*.json")))


def test_the_seconds_of_a_committed_record_add_up():
    for path in (*RUNS.rglob("*.json"), *page.FACTORS.glob("*.json")):
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        total = seconds.pop("total", None)
        # The processor's time is summed over cores.
        parts = [value for name, value in seconds.items() if not name.endswith("_cpu")]
        assert total is None or total >= sum(parts), path


def test_no_committed_figure_of_single_images_holds_a_picture():
    found = list((page.DOCS / "figures").glob("predictions_*.svg"))
    assert found
    assert not any("<image" in path.read_text() for path in found)


def test_the_papers_matrix_is_of_publictest():
    assert tuple(map(sum, paper.CONFUSION)) == sources.COUNTS["valid"]
    assert sum(paper.CONFUSION[i][i] for i in range(7)) == 1997


def test_every_row_has_an_experiment():
    names = [*paper.PAPER, *(related.experiment for related in paper.RELATED)]
    assert all(records.experiment_config(name).experiment == name for name in names)


# Records


VALID = {"count": 14, "accuracy": 0.5, "loss": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_evaluations": 2}, r"0\.json: test was opened 2 times, not once"),
        ({"epochs_run": 5}, r"0\.json .*: history has 20 of 5 epochs"),
        (
            {"dataset": {"name": "synthetic_faces", "count": {}}},
            r"0\.json is of a run on synthetic_faces, not fer2013",
        ),
        ({"metrics": {"train": {}}}, r"0\.json .*: metrics\.valid is missing"),
        ({"metrics": {"valid": 3}}, r"0\.json .*: metrics\.valid is 3, no dict"),
        ({"metrics": {"valid": {}}}, r"0\.json .*: metrics\.valid\.count is missing"),
        ({"metrics": {"valid": VALID}, "predictions": {}}, r"0\.json: metrics\.train is missing"),
        ({"test_evaluations": 0}, r"0\.json: test was opened 0 times, not once"),
        ({"best_epoch": "3"}, r"0\.json .*: best_epoch is '3', no int"),
        ({"seconds": {"train": float("nan")}}, r"0\.json .*: seconds\.train is nan"),
        ({"history": [3], "epochs_run": 1}, r"0\.json .*: history\[0\] is 3, no dict"),
        ({"history": [{}], "epochs_run": 1}, r"0\.json .*: history\[0\]\.epoch is missing"),
        ({"predictions": {}}, r"0\.json: predictions\.test is missing"),
        ({"predictions": {"test": {"labels": "01"}}}, r"predictions\.test cannot be unpacked"),
        (
            {"predictions": {"test": packed(probabilities(LABELS[:7]), LABELS[:7])}},
            r"predictions\.test has 7 of 14 images",
        ),
        (
            {"predictions": {"test": packed(-probabilities(LABELS))}},
            r"predictions\.test has values that are no probabilities",
        ),
        (
            {"config": {"data": {"partial": True}, "model": {}, "train": {"epochs": 1}}},
            r"0\.json is of a run on a part of the data set",
        ),
    ],
)
def test_a_record_that_no_table_may_use_is_left_out_in_a_line(tmp_path, changes, message, caplog):
    write(tmp_path, record(**changes), record(1))
    with pytest.raises(RecordError, match=message):
        records.read(tmp_path / "0.json")
    assert [r["seed"] for r in records.load_runs(tmp_path)["arch02_bs96"]] == [1]
    [line] = caplog.messages
    assert line.startswith("left out: ")
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "[]", "3", json.dumps(record())[:100], "\xff"])
def test_a_damaged_file_is_left_out(tmp_path, text, caplog):
    (tmp_path / "half.json").write_bytes(text.encode("latin-1"))
    assert records.load_runs(tmp_path) == {}
    assert "half.json is no record of a whole run" in caplog.text


def test_runs_of_one_row_differ_in_nothing_but_their_seed(tmp_path, caplog):
    write(tmp_path, record(0), record(0))
    assert len(records.load_runs(tmp_path)["arch02_bs96"]) == 1
    assert "1.json: a second record of seed 0 on a like device" in caplog.text
    write(tmp_path, record(0), record(1))
    assert len(records.load_runs(tmp_path)["arch02_bs96"]) == 2
    other = record(1)
    other["config"]["train"]["epochs"] = 1
    write(tmp_path, record(0), other)
    assert len(records.load_runs(tmp_path)["arch02_bs96"]) == 1
    assert "1.json: train.epochs is 1, but 20 in seed 0" in caplog.text


def test_an_ensemble_has_no_epochs_and_no_time(tmp_path):
    found = record(experiment="mine", members=[{"seed": 0}, {"seed": 1}])
    for name in ("history", "epochs_run", "best_epoch", "seconds"):
        del found[name]
    write(tmp_path, found)
    runs = records.load_runs(tmp_path)
    row = tables.other_table(runs).splitlines()[2]
    assert row == "| `mine` | 0.500 | 0.500 | 0.500 | 0.490 | 1 | - | - |"
    assert records.ending(runs["mine"][0]) == "to the end: an ensemble of 2 runs"
    assert "**0.500** on PrivateTest" in words.verdict(loaded(record(accuracy=0.1)) | runs)


def test_bfloat16_is_compared_seed_by_seed_with_float32_on_a_cpu():
    exact = [record(seed, model="arch02", convolutions="native") for seed in range(4)]
    name = "arch02_bs96_bfloat16"
    rounded = [
        record(seed, model="arch02", experiment=name, convolutions="native bfloat16")
        for seed in range(3)
    ]
    for found in rounded:
        found["config"]["experiment"] = name
        found["config"]["model"]["dtype"] = "bfloat16"
    for found, accuracy in zip(exact, (0.50, 0.51, 0.52, 0.99), strict=True):
        found["metrics"]["valid"]["accuracy"] = accuracy
    for found, change in zip(rounded, (0.01, -0.01, 0.03), strict=True):
        found["metrics"]["valid"]["accuracy"] = 0.50 + found["seed"] / 100 + change
    runs = {"arch02_bs96": exact, "arch02_bs96_bfloat16": rounded}
    row = tables.precision_table(runs).splitlines()[2]
    # Differences of 1, -1 and 3 points: deviation 2, and 4.303 is Student's t of two.
    assert row == (
        "| Architecture 02, batch 96 | 3 | 0.510 ± 0.010 | 0.520 ± 0.026 | +1.00 points "
        "| -3.97 to +5.97 |"
    )
    assert "Not measured" in tables.precision_table({"arch02_bs96": exact})
    other = copy.deepcopy(rounded)
    for found in other[1:]:
        found["config"]["train"]["learning_rate"] = 0.5
    # XLA's bfloat16, one seed alone, and other recipes are no such comparison.
    for found in ([record(), record(1)], rounded[:1], other):
        assert "Not measured" in tables.precision_table(runs | {"arch02_bs96_bfloat16": found})


def test_a_metric_that_a_record_lacks_is_a_dash():
    old = record(1)
    old["metrics"]["test"] = {k: v for k, v in old["metrics"]["test"].items() if k != "macro_f1"}
    line = tables.metrics_table(loaded(record(), old)).splitlines()[2]
    assert line.startswith("| Architecture 02, batch 96 | 0.500 ± 0.000 | 0.857 ± 0.000 | - |")


def test_records_are_found_below_the_folder_and_go_by_device_and_seed(tmp_path):
    (tmp_path / "gpu").mkdir()
    write(tmp_path, record(1), record(0, device=CPU | {"kind": "another"}))
    write(tmp_path / "gpu", record(0, device=GPU))
    found = records.load_runs(tmp_path)["arch02_bs96"]
    assert [(r["device"]["platform"], r["seed"]) for r in found] == [
        ("cpu", 0),
        ("cpu", 1),
        ("gpu", 0),
    ]
    assert records.main_row(found) == found[:2]
    rows = tables.time_table({"arch02_bs96": found}).splitlines()[2:4]
    assert rows[0].endswith("| another, 2 cores; a processor, 2 cores |")
    assert rows[1].endswith("| a GPU |")


def test_what_all_ran_on_is_said_once_below_the_table():
    text = tables.time_table(loaded(record(), record(experiment="arch01")))
    assert text.count("a processor, 2 cores") == 1
    assert "\n\nRun on: a processor, 2 cores.\n\n" in text
    assert text.endswith("Architecture 02, batch 16, Architecture 03: not measured yet.")


@pytest.mark.parametrize(
    ("experiment", "run", "patience", "best", "says"),
    [
        ("arch02_bs96", 20, 0, 3, "to the end: all 20 epochs"),
        ("arch02_bs96", 12, 0, 3, "stopped early by budget, of 20 epochs"),
        ("fathallah", 8, 5, 3, "to the end: valid no better for 5 epochs"),
        ("fathallah", 8, 5, 4, "stopped early by budget, of 30 epochs"),
        ("fathallah", 1, 5, 1, "stopped early by budget, of 30 epochs"),
    ],
)
def test_how_far_a_run_went(experiment, run, patience, best, says):
    history = [{"epoch": e, "valid/accuracy": 0.5 + (e == best)} for e in range(1, run + 1)]
    config = {"train": {"epochs": run, "patience": patience}}
    found = record(experiment=experiment, history=history, epochs_run=run, config=config)
    assert records.ending(found) == says
    assert records.is_complete(found) == says.startswith("to the end")


# Tables


def test_several_seeds_give_mean_and_deviation():
    runs = loaded(record(0, 0.6), record(1, 0.5))
    row = next(x for x in tables.paper_table(runs).splitlines() if "batch 96" in x)
    assert "0.550 ± 0.071" in row
    assert "0.540 ± 0.071" in row
    assert "| 2.0 min | 0.76 | 48 h |" in row


def test_the_best_record_is_chosen_on_valid():
    def scored(experiment, valid, test):
        found = record(experiment=experiment)
        numbers = found["metrics"]["test"]
        found["metrics"] = found["metrics"] | {
            "valid": numbers | {"accuracy": valid},
            "test": numbers | {"accuracy": test},
        }
        return found

    runs = loaded(scored("arch01", 0.5, 0.9), scored("mine", 0.6, 0.55), scored("moran", 0.4, 0.8))
    assert tables.best_on_valid(runs) == "mine"
    rows = tables.paper_table(runs).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:4]] == [
        "| Architecture 01",
        "| Best on valid: mine",
    ]
    assert "**0.550** on PrivateTest" in words.verdict(runs)


def test_core_minutes_are_shown_where_every_record_has_them():
    timed = {"train": 60.0, "train_cpu": 90.0}
    assert records.training_time([record(seconds=timed)]) == "1.5 core-min"
    assert records.training_time([record(seconds=timed), record(1)]) == "1.8 min"
    assert records.training_time([record(seconds=timed, device=GPU)]) == "1.0 GPU-min"


def test_what_training_costs_is_a_cpus_where_there_is_one():
    timed = {"train": 60.0, "train_cpu": 90.0}
    seeds = [record(seed, seconds=timed, device=GPU) for seed in range(2)]
    there = cost.rows(loaded(*seeds))
    assert ([row.cells[-3:] for row in there], there[0].core_minutes) == (
        [["1.0 GPU-min", "a GPU", "2"]],
        None,
    )
    both = cost.rows(loaded(*seeds, record(seconds=timed)))
    assert ([row.cells[-3:] for row in both], both[0].core_minutes) == (
        [["1.5 core-min", "a processor, 2 cores", "2"]],
        1.5,
    )


def unfinished(**changes):
    """A record of a run that stopped after two epochs."""
    found = record(**changes)
    return found | {"history": found["history"][:2], "epochs_run": 2}


def test_what_training_costs_is_of_whole_runs():
    timed = {"train": 60.0, "train_cpu": 90.0}
    seeds = [record(seed, seconds=timed, device=GPU) for seed in range(2)]
    short = {"train": 6.0, "train_cpu": 6.0}
    runs = loaded(*seeds, unfinished(seconds=short), record(1, seconds=timed))
    [row] = cost.rows(runs)
    assert (row.cells[-3:], row.core_minutes) == (
        ["1.5 core-min", "a processor, 2 cores", "2"],
        1.5,
    )
    [row] = cost.rows(loaded(*seeds, unfinished(seconds=short)))
    assert (row.cells[-3:], row.core_minutes) == (["1.0 GPU-min", "a GPU", "2"], None)


def test_a_whole_run_stands_where_another_was_stopped():
    runs = loaded(unfinished(), record(accuracy=0.6, device=GPU))
    assert records.main_row(runs["arch02_bs96"]) == runs["arch02_bs96"][1:]
    assert tables.main_rows(runs) == {"arch02_bs96": runs["arch02_bs96"][1:]}
    assert "2 of 20 epochs" in tables.related_table(runs)
    assert records.main_row([unfinished()]) == [unfinished()]


def test_an_experiment_without_a_file_is_named_in_a_line():
    with pytest.raises(RecordError, match=r"no experiments/nothing\.py"):
        tables.size("nothing")


def test_the_strong_fully_cnn_is_the_one_that_its_record_is_of():
    [found] = records.load_runs()["fully_cnn_strong"]
    config = records.experiment_config("fully_cnn_strong")
    assert config is not None
    assert config.model.dropout == 0.2
    assert changed_fields(config, found["config"]) == {}


def test_a_page_without_any_record_says_so():
    sources = page.Sources({}, None, figures.Faces([]))
    text = document(sources)
    assert text.count("ot measured yet") > 20
    assert "1,485,831" in text  # the architectures need no record
    readme = page.updated_readme(page.README.read_text(encoding="utf-8"), sources)
    assert "The paper's networks: not measured yet." in readme
    assert "<!-- speed:begin -->\nNot measured yet.\n" in readme


def test_the_crossing_is_the_first_epoch_that_reaches_the_papers_accuracy():
    history = record()["history"]
    assert statistics.crossing(history, 0.6)["epoch"] == 2
    assert statistics.crossing(history, 0.95) is None
    # From (0.6, 1.0) to (0.9, 0.5): 0.76 is 8/15 of the way.
    assert statistics.loss_at(history, 0.76) == pytest.approx(1.0 - 0.5 * 8 / 15)
    assert statistics.loss_at(history, 0.95) is None
    assert statistics.loss_at(history, 0.2) is None  # the curve begins above it
    table = tables.crossing_table(loaded(record()))
    assert "| 3 | 0.733 | 0.900, 0.500 | - | 0.750, 1.500 | 0.750 |" in table


def test_the_crossing_shows_training_without_dropout_where_it_is_recorded():
    found = record()
    for row in found["history"]:
        row |= {"train/accuracy": 0.95, "train/loss": 0.25}
    assert "| 0.950, 0.250 |" in tables.crossing_table(loaded(found))


def test_a_curve_that_does_not_get_there_says_so():
    found = record(experiment="arch03")
    for row in found["history"]:
        row["train_running/accuracy"] = 0.85
    assert "not within 20 epochs" in tables.crossing_table(loaded(found))
    assert "does not reach accuracy 0.889" in words.crossing(loaded(found))


def test_recipes_stand_with_and_without_views():
    views = {"metrics": {"test": {"accuracy": 0.625, "accuracy_unique": 0.375, "macro_f1": 0.25}}}
    found = [record(seed, 0.5 + seed / 10, experiment="compact", views=views) for seed in range(2)]
    table = tables.recipes_table(loaded(*found, record(experiment="arch03")))
    (row,) = (line for line in table.splitlines() if line.startswith("| Compact |"))
    assert row.startswith("| Compact | 0.550 ± 0.071 | 0.550 ± 0.071 | ")
    assert row.endswith(" | 0.625 ± 0.000 | 0.375 ± 0.000 | 0.250 ± 0.000 | 2 |")
    assert "Architecture" not in table
    del found[1]["views"]
    assert tables.recipes_table(loaded(*found)).endswith(" | - | - | - | 2 |")


def test_the_related_table_has_sizes_and_what_the_paper_prints():
    table = tables.related_table(loaded(record(experiment="mini_xception")))
    row = next(x for x in table.splitlines() if "mini-XCEPTION" in x)
    assert "| 0.500 | 0.500 | 0.500 | 1 | 0.95 | 30 | 58,423 | 20.3 | to the end: all 30" in row
    assert [x for x in table.splitlines() if "GoogLeNet" in x] == table.splitlines()[-1:]
    assert table.endswith("Architecture 03: not measured yet.")


def test_published_weights_stand_beside_the_network_that_was_trained_here():
    table = tables.related_table(loaded(record(experiment="mini_xception")), [PUBLISHED])
    row = next(x for x in table.splitlines() if "weights as published" in x)
    assert "| - | 0.653 | 0.657 | - | 0.95 | - | 58,423 | 20.3 | elsewhere; chosen on what" in row


def test_what_was_not_trained_to_the_end_is_named_and_stands_nowhere_else():
    runs = loaded(record(), unfinished(experiment="mini_xception"))
    assert "mini_xception" not in tables.main_rows(runs)
    table = tables.related_table(runs)
    assert "mini-XCEPTION (Nishchal 2018) (2 of 30 epochs, valid 0.500; all of" in table
    assert "about 45 core minutes" in table  # 90 s on two cores for two epochs
    assert "mini-XCEPTION" not in tables.calibration_table(runs) + tables.spread_table(runs)
    assert "mini-XCEPTION" not in cost.table(runs)


def test_costs_are_sorted_by_test_and_published_weights_have_no_training():
    seconds = {"train": 200.0, "train_cpu": 120.0}
    views = {"metrics": {"test": {"accuracy": 0.625}}}
    runs = loaded(record(0, 0.5, seconds=seconds), record(0, 0.6, experiment="arch03", views=views))
    rows = cost.rows(runs, [PUBLISHED])
    assert [row.test for row in rows] == [0.657, 0.6, 0.5]
    assert [row.core_minutes for row in rows] == [None, None, 2.0]
    published, arch03, arch02 = cost.table(runs, [PUBLISHED]).splitlines()[2:]
    assert (
        "published weights (chosen on what) | 1 | 0.657 | - | 58,423 | 20.3 | - | - | - |"
        in published
    )
    on = "a processor, 2 cores"
    assert (
        arch03 == f"| Architecture 03 | 2 | 0.600 | 0.625 | 290,023 | 90.1 | 1.5 min | {on} | 1 |"
    )
    assert arch02.endswith(f"| 3 | 0.500 | - | 420,199 | 10.2 | 2.0 core-min | {on} | 1 |")
    drawing = cost.figure(runs, [PUBLISHED])
    left, right = drawing.draw(drawing.data).axes
    assert [len(axes.lines) for axes in (left, right)] == [3, 1]


def test_table_2_counts_what_was_trained_and_reached():
    runs = loaded(record(0, 0.7, experiment="moran"), record(0, 0.5, experiment="mini_xception"))
    found = words.table_2(runs, [PUBLISHED])
    assert "Of its 7 networks 2 were trained to the end here, and 1 of them reaches" in found
    assert "nearest is Gudi's, 3 conv (Moran 2019), 0.700 where 0.65" in found
    assert "weights give 0.657 on test, but were chosen on what. Those" in found
    assert "chose nothing is open. Those" in words.table_2(runs, [])
    assert "not measured" in words.table_2(loaded(record()), [])


# Documents


BLOCK = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter"


def test_prose_stays_and_blocks_are_made_anew():
    found = markdown.replace_blocks(BLOCK, {"a": lambda: "new"})
    assert found == BLOCK.replace("old", "new")
    assert markdown.replace_block(BLOCK, "a", "new") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", "no block for 'a'.* add <!-- a:begin --> and <!-- a:end -->"),
        (BLOCK + BLOCK.replace("a:", "b:"), "nothing makes the block 'b'; there are a"),
        (BLOCK + BLOCK, "<!-- a:begin --> is out of place"),
        ("<!-- a:end --><!-- a:begin -->", "<!-- a:end --> is out of place"),
        ("<!-- a:begin -->", "there is no <!-- a:end -->"),
    ],
)
def test_a_block_that_is_unknown_missing_or_out_of_place_is_refused(text, message):
    with pytest.raises(DocumentError, match=message):
        markdown.replace_blocks(text, {"a": lambda: "new"})


def test_a_table_aligns_numbers_right():
    assert markdown.table(("a", "b", "c"), [(1, 2, 3)], text=(2,)) == (
        "| a | b | c |\n| --- | ---: | --- |\n| 1 | 2 | 3 |"
    )


# Statistics


def test_expected_calibration_error_by_hand():
    # Confidence 0.75 on four images, of which two are right; 0.5 on one that is right; 1 on one.
    labels = np.array([0, 1, 2, 3, 4, 5])
    classes = np.array([0, 1, 3, 4, 4, 5])
    found = probabilities(classes)
    found[4], found[5] = probabilities([4], 0.5), probabilities([5], 1.0)
    bins = statistics.calibration(labels, found, bins=4)
    assert bins.count.tolist() == [0, 1, 4, 1]  # a bin holds its upper edge
    np.testing.assert_allclose(bins.confidence, [np.nan, 0.5, 0.75, 1])
    np.testing.assert_allclose(bins.accuracy, [np.nan, 1, 0.5, 1])
    assert bins.error == pytest.approx((1 * 0.5 + 4 * 0.25 + 1 * 0) / 6)


def test_temperature_undoes_what_made_probabilities_too_sure():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 7))
    fair = statistics.scale(np.exp(logits), 1.0)
    labels = np.array([rng.choice(7, p=p) for p in fair])
    sure = statistics.scale(fair, 1 / 2.5)
    assert statistics.temperature(labels, sure) == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(statistics.scale(sure, 2.5), fair, atol=1e-4)
    before, after = (statistics.calibration(labels, p).error for p in (sure, fair))
    assert after < 0.03 < before
    zeros = np.eye(7)[labels[:10]]
    assert np.isfinite(statistics.scale(zeros, 3.0)).all()


def test_temperatures_are_fitted_on_valid():
    found = record()
    assert tables.calibration_table(loaded(found)).count("| - | - | 1.250 | 1 |") == 1
    found["predictions"]["valid"] = found["predictions"]["test"]
    assert "| - |" not in tables.calibration_table(loaded(found))


def test_openings_of_test_are_counted():
    runs = loaded(record(0), record(1), record(experiment="arch03"))
    found = words.openings(runs)
    assert found.startswith("Test was opened 3 times in all, once for each of 3 records")
    ensemble = record(experiment="compact_ensemble", members=[{}, {}])
    assert "and 1 ensemble" in words.openings(runs | loaded(ensemble))
    found = words.openings(runs, [1, 1, 0])
    assert "opened 5 times in all, once for each of 3 records of runs, and 2 times for" in found
    found = words.openings(runs, [1, 1, 0], [1])
    assert "opened 6 times" in found
    assert "and 1 time for what stands in `results/replaced`" in found
    found = words.openings(runs, [1, 1, 0], [1], [1, 1])
    assert "opened 8 times" in found
    assert "and 2 times for shipped weights whose runs are in no table" in found
    assert "ONNX files of shipped ones (`results/kernels.json`), are measured on it" in found


def test_speeds_of_the_papers_networks_share_a_row():
    cases = {
        "arch01_bs96": {"fer_jax_xla": 2.0, "torch": 3.0},
        "arch02_bs16": {"fer_jax_xla": 1.25, "torch": 3.0},
        "compact_bs128": {"fer_jax_xla": 1.5, "torch_bf16": 0.5},
    }
    of = {
        case: {"train": {"ratio": {peer: {"median": value} for peer, value in ratios.items()}}}
        for case, ratios in cases.items()
    }
    assert speed.table([{"environment": {"device": CPU}, "cases": of}]).splitlines()[2:] == [
        "| The paper's networks, a processor, 2 cores | 1.25 to 2.00 | - | 3.00 | - |",
        "| `compact`, a processor, 2 cores | 1.50 | - | - | 0.50 |",
    ]


def test_processors_of_one_name_are_told_apart_by_their_best_instructions():
    def row(*features):
        device = CPU | {"cpu_features": list(features)}
        cases = {"compact_bs128": {"train": {"ratio": {}}}}
        found = speed.table([{"environment": {"device": device}, "cases": cases}])
        return found.splitlines()[2].split(" |")[0]

    assert row() == "| `compact`, a processor, 2 cores"
    assert row("avx2", "fma") == "| `compact`, a processor, 2 cores, avx2"
    assert row("avx2", "avx512f", "avx512_bf16").endswith(", avx512_bf16")


def test_mcnemar_by_hand():
    first = np.array([True] * 8 + [False] * 2)
    second = np.array([True] * 3 + [False] * 5 + [True, False])
    found = statistics.compare(first, second)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.difference == pytest.approx(0.4)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)  # of 6 tosses at most 1, on either side
    half = 1.96 * np.sqrt(6 - 16 / 10) / 10
    assert found.interval == pytest.approx((0.4 - half, 0.4 + half))
    assert statistics.compare(first, first).p == 1
    with pytest.raises(ValueError, match="of 10 and of 9 images"):
        statistics.compare(first, second[1:])


def test_holm_multiplies_the_smallest_by_their_number():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_binomial_error_of_an_accuracy():
    assert statistics.binomial_error(0.5, 3589) == pytest.approx(0.5 / 3589**0.5)


def test_pairs_count_who_alone_is_right():
    runs = loaded(
        *(record(wrong=10), record(1, wrong=0), record(experiment="arch01", wrong=1)),
        record(experiment="arch03", wrong=1),
    )
    found = tables.pairs(runs, ["arch02_bs96", "arch01", "arch03"])
    pair = next(x for x in found if (x.better, x.worse) == ("arch01", "arch02_bs96"))
    assert (pair.found.only_first, pair.found.only_second) == (9, 0)
    assert pair.found.p == pytest.approx(2 / 2**9)
    assert pair.adjusted == pytest.approx(3 * 2 / 2**9)
    assert pair.differs
    assert pair.agreeing == (1, 2)  # against seed 1 it is worse
    assert not next(x for x in found if {x.better, x.worse} == {"arch01", "arch03"}).differs
    text = words.differences(found)
    assert "* Architecture 01 is better than Architecture 02, batch 96." in text
    assert "Of 3 differences 2 are larger than chance would bring" in text


def test_networks_are_chosen_for_comparison_by_valid_and_only_if_trained_to_the_end():
    def related(experiment, valid, run=30, model=None):
        history = [{"epoch": e, "valid/accuracy": 0.1 * e} for e in range(1, run + 1)]
        found = record(experiment=experiment, epochs_run=run, history=history, model=model)
        found["metrics"] = found["metrics"] | {"valid": {"accuracy": valid}}
        return found

    runs = loaded(
        record(),
        related("moran", 0.3),
        related("fathallah", 0.5),
        related("fully_cnn", 0.4),
        related("mini_xception", 0.6),
        related("xception", 0.9, run=1),
        related("serengil", 0.9, model="arch02_bs96"),  # one of the paper's under another name
    )
    # What newer records say of fields that are left to the network is no difference.
    runs["serengil"][0]["config"]["model"]["width"] = None
    assert words.compared(runs) == ["arch02_bs96", "mini_xception", "fathallah", "fully_cnn"]


def test_the_title_of_published_weights_says_what_they_were_chosen_on(committed, drawn):
    found = page.page_blocks(committed, drawn)["pairs-words"]()
    title = "published weights (chosen on PublicTest and PrivateTest together)"
    assert found.count("published weights") == found.count(title) > 0


# Figures


FACES = figures.Faces([f"face {i}" for i in range(14)])


def test_images_are_the_first_of_each_class():
    labels = np.array([3, 0, 0, 0, 3, 3])
    assert figures.chosen_images(labels) == [1, 2, 0, 4]


def test_mistakes_come_by_confidence():
    found = record()
    chances = probabilities(LABELS)
    for index, top in ((2, 0.6), (5, 0.9), (9, 0.7)):
        chances[index] = probabilities([(LABELS[index] + 1) % 7], top)[0]
    found["predictions"] = {"test": packed(chances)}
    mistakes = figures.mistakes(found, FACES)
    assert [m["id"] for m in mistakes] == ["face 5", "face 9", "face 2"]
    assert (mistakes[0]["true"], mistakes[0]["predicted"]) == ("Surprise", "Neutral")
    assert mistakes[0]["probabilities"][6] == pytest.approx(0.9, abs=1e-3)
    assert "| face 5 | Surprise | Neutral | 0.900 | 0.017 |" in tables.mistakes_table(mistakes)


def test_curves_are_drawn_from_the_history():
    drawing = figures.learning_curves("arch02_bs96", [record(0), record(1)])
    left, right = drawing.draw(drawing.data).axes
    running, valid = left.lines[:2]
    np.testing.assert_allclose(running.get_ydata()[:4], [0.3, 0.6, 0.9, 0.9])
    np.testing.assert_allclose(valid.get_ydata()[:4], [0.25, 0.5, 0.75, 0.75])
    assert valid.get_xdata().tolist() == list(range(1, 21))
    assert len(left.lines) == 2 * 2 + 1  # two seeds, and the paper's figure
    assert right.lines[-1].get_ydata()[0] == 0.63


def test_pairs_of_the_paper_are_drawn_beside_the_curves():
    drawing = figures.paper_pairs(loaded(record()))
    panel = drawing.draw(drawing.data).axes[2]
    np.testing.assert_allclose(panel.lines[0].get_xdata()[:4], [0.3, 0.6, 0.9, 0.9])
    np.testing.assert_allclose(panel.lines[0].get_ydata()[:4], [1.5, 1.0, 0.5, 0.5])
    assert panel.lines[-1].get_xydata().tolist() == [[0.76, 0.63]]


def test_bars_are_the_probabilities_and_the_wrong_class_is_hatched():
    drawing = figures.predictions("arch02_bs96", record(wrong=1), FACES)
    panels = drawing.draw(drawing.data).axes
    assert len(panels) == len(drawing.data) == 14
    widths = [bar.get_width() for bar in panels[0].patches]
    np.testing.assert_allclose(widths, probabilities([1])[0], atol=1e-3)
    hatched = [[bool(bar.get_hatch()) for bar in panel.patches] for panel in panels[:2]]
    assert hatched == [[False, True] + [False] * 5, [False] * 7]
    assert drawing.alt.count("taken for") == 14


def test_the_reliability_diagram_shows_the_bins():
    drawing = figures.reliability(loaded(record(wrong=7)))
    upper, lower = drawing.draw(drawing.data).axes
    np.testing.assert_allclose(upper.lines[1].get_xydata(), [[0.75, 0.5]])
    assert [bar.get_height() for bar in lower.patches] == drawing.data["Architecture 02, batch 96"][
        "count"
    ]


def test_every_seed_is_a_point():
    drawing = figures.seed_spread(loaded(record(0, 0.6), record(1, 0.5)))
    axes = drawing.draw(drawing.data).axes[0]
    points = next(line for line in axes.lines if line.get_marker() == "o")
    assert points.get_xdata().tolist() == [0.6, 0.5]
    assert axes.get_yticklabels()[0].get_text() == "Architecture 02, batch 96"


def test_a_figure_is_saved_to_the_same_bytes_and_names_its_numbers(tmp_path):
    drawing = figures.learning_curves("arch02_bs96", [record()])
    for name in ("a", "b"):
        page.write_figures({drawing.name: drawing}, tmp_path / name)
    first, second = ((tmp_path / x / f"{drawing.name}.svg").read_bytes() for x in "ab")
    assert first == second
    assert figures.digest(drawing.data).encode() in first


@pytest.mark.slow
def test_panels_stand_below_one_another_where_it_is_narrow(committed):
    runs = loaded(*(record(experiment=name) for name in ("arch01", "arch02_bs96", "moran")))
    for name, drawing in page.drawings(committed._replace(runs=runs)).items():
        panels = drawing.draw(drawing.data, True).axes
        columns = {
            axes.get_subplotspec().colspan.start for axes in panels if axes.get_subplotspec()
        }
        assert columns == {0}, name


# Pages


@pytest.fixture
def faces(data_dir, config):
    return prepare.load_dataset(config.data)


def of_faces(faces):
    """Returns a record of predictions on the tiny faces."""
    labels = faces.splits["test"].labels
    return record(predictions={"test": packed(probabilities(labels), labels)})


@pytest.mark.slow
def test_the_illustrated_page_has_the_pictures_and_the_other_none(faces):
    plain = page.Sources(loaded(of_faces(faces)), None, figures.Faces([str(i) for i in range(23)]))
    found = {}
    for name, given in (("plain", plain), ("illustrated", page.with_pictures(plain, faces))):
        found[name] = page.drawings(given)
    svg = {name: drawn["predictions_arch02_bs96"].svg() for name, drawn in found.items()}
    assert svg["plain"].count("<image") == 0
    assert svg["illustrated"].count("<image") == 14
    assert set(found["illustrated"]) - set(found["plain"]) == {"mistakes_arch02_bs96"}


def test_pictures_of_other_data_are_refused(faces):
    given = page.Sources(loaded(record()), None, FACES)
    with pytest.raises(DataError, match="test labels of arch02_bs96, seed 0"):
        page.with_pictures(given, faces)


def test_the_command_refuses_other_data_in_a_line(config, tmp_path, caplog):
    assert modes.status(lambda: modes.report.write_illustrated(config.data, tmp_path)) == 1
    assert "give the data that the records are of" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_figures_of_other_names_go(tmp_path):
    (tmp_path / "stale.svg").write_text("")
    drawing = figures.seed_spread(loaded(record()))
    page.write_figures({drawing.name: drawing}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"seed_spread.svg", "data.json"}
    data = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    [numbers] = data["seed_spread"].values()
    assert numbers["seeds"] == [0.5]


def test_the_html_page_needs_no_other_file():
    drawing = figures.seed_spread(loaded(record()))
    image = f"![{drawing.alt}](figures/seed_spread.svg)"
    table = "<!-- t:begin -->\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n<!-- t:end -->"
    text = f"# Title\n\n{table}\n\n<details>\n<summary>more</summary>\n\n{image}\n\n</details>\n"
    found = html.page(text, {drawing.name: drawing})
    assert "<title>Title</title>" in found
    assert '<img alt="Test accuracy of every network' in found
    assert found.count("data:image/svg+xml,%3Csvg") == 2  # wide and narrow
    assert "figures/" not in found
    assert "<!-- t:" not in found
    assert '<td style="text-align: right;">2</td>' in found
    assert "![" not in found  # what a reader may fold is Markdown too


def test_links_in_the_contents_lead_to_headings():
    text = page.PAGE.read_text(encoding="utf-8")
    found = html.page(re.sub(r"!\[.*", "", text), {})
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 10
    assert all(f'id="{link}"' in found for link in links)


@pytest.mark.slow
def test_documents_are_made_whatever_the_locale(tmp_path):
    """In a copy of the repository, where the locale's encoding is ASCII."""
    for name in ("docs", "results", "fer_jax", "experiments", "checkpoints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "launch.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    pages = ("README.md", "docs/reproduction.md", "docs/reliability.md")
    documents = [tmp_path / name for name in pages]
    before = [path.read_bytes() for path in documents]
    run = subprocess.run(
        [sys.executable, "launch.py", "--mode=report"],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [path.read_bytes() for path in documents] == before
    assert (tmp_path / "out" / "reproduction.html").stat().st_size > 1e6


# Copies


def test_copies_are_counted():
    def split(pixels, labels):
        images = np.zeros((len(pixels), 48, 48, 1), np.uint8)
        images[:, 0, 0, 0] = pixels
        ids = np.array([f"Usage_{100 + i}" for i in range(len(pixels))], "S")
        return datasets.Split(images, np.array(labels, np.uint8), ids, np.zeros(len(pixels), bool))

    splits = {
        "train": split([1, 1, 1, 2, 2, 3], [0, 0, 4, 5, 5, 6]),
        "valid": split([7, 2], [1, 4]),
        "test": split([1, 2, 9, 9], [4, 0, 1, 2]),
    }
    found = duplicates.count(datasets.Dataset("fer2013", "jpeg", "ab", splits))
    assert found["within"]["train"] == {
        "groups": 2,
        "images": 5,
        "conflicting_groups": 1,
        "conflicting_images": 3,
        "best_accuracy": round(5 / 6, 6),
    }
    assert found["within"]["valid"]["groups"] == 0
    assert found["within"]["test"]["best_accuracy"] == 0.75
    assert found["between"]["train, test"] == {"images": 2, "contradicted": 1}
    assert found["between"]["valid, test"] == {"images": 1, "contradicted": 1}
    assert found["test_numbers"] == [100, 101, 102, 103]
    json.dumps(found)


@pytest.mark.slow
def test_a_data_set_on_the_command_line_asks_for_the_illustrated_page(data_dir, tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, ROOT / "launch.py", "--mode=report"),
            *("--config.data.name=synthetic_faces", f"--config.data.data_dir={data_dir}"),
            f"--workdir={tmp_path / 'page'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "are not those of synthetic_faces" in run.stderr
    assert "Traceback" not in run.stderr
