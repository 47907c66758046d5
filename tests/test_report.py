import json

import pytest

from fer_jax import report


def record(seed=0, accuracy=0.5, **changes):
    numbers = {"accuracy": accuracy, "accuracy_unique": accuracy - 0.01}
    history = [
        {
            "epoch": e,
            "train_running/accuracy": 0.3 * e,
            "train_running/loss": 2.0 - 0.5 * e,
            "valid/accuracy": 0.25 * e,
            "valid/loss": 1.5,
        }
        for e in (1, 2, 3)
    ]
    return {
        "experiment": "arch02_bs96",
        "seed": seed,
        "metrics": dict.fromkeys(("train", "valid", "test"), numbers),
        "history": history,
        "epochs_run": 3,
        "best_epoch": 3,
        "test_evaluations": 1,
        "seconds": {"train": 90.0 + 60.0 * seed},
        "device": {"platform": "cpu", "kind": "a processor", "cpu_cores": 2, "count": 1},
    } | changes


def write(folder, *records):
    for i, found in enumerate(records):
        (folder / f"{i}.json").write_text(json.dumps(found))


def test_the_readme_says_what_the_records_say():
    text = (report.ROOT / "README.md").read_text()
    assert report.updated_readme(text) == text, "run: uv run python -m fer_jax.report"


def test_several_seeds_give_mean_and_deviation(tmp_path):
    write(tmp_path, record(1, 0.5), record(0, 0.6))
    runs = report.load_runs(tmp_path)
    assert [r["seed"] for r in runs["arch02_bs96"]] == [0, 1]
    row = next(x for x in report.paper_table(runs).splitlines() if "`arch02_bs96`" in x)
    assert "0.550 ± 0.071" in row
    assert "0.540 ± 0.071" in row
    assert "0.76, loss 0.63, 48 h" in row
    assert "2.0 min" in row


def test_rows_without_a_record_say_so():
    assert report.paper_table({}).count("not measured yet") == 4


def test_the_crossing_is_the_first_epoch_that_reaches_the_studys_accuracy():
    assert report.crossing(record()["history"], 0.6)["epoch"] == 2
    assert report.crossing(record()["history"], 0.95) is None
    table = report.crossing_table({"arch02_bs96": [record()]})
    assert "| 3 | 0.900, 0.500 | 0.750, 1.500 |" in table


@pytest.mark.parametrize("changes", [{"test_evaluations": 2}, {"epochs_run": 5}])
def test_a_record_that_opened_test_twice_or_is_not_whole_is_refused(tmp_path, changes):
    write(tmp_path, record(**changes))
    with pytest.raises(ValueError, match=r"0\.json"):
        report.load_runs(tmp_path)


def test_markers_must_be_there():
    with pytest.raises(ValueError, match="paper:begin"):
        report.replace_between("no markers", "paper", "")
