"""Scoring, on made-up labels of the published counts; what needs the real ones asks for `real`."""

import csv
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.apps import cli, score
from fer_jax.data import labels_fer2013, prepare, sources
from fer_jax.data.dataset import VERSIONS
from fer_jax.data.labels_fer2013 import USAGES, Labels
from fer_jax.data.prepare import default_data_dir
from fer_jax.labels import CLASSES
from fer_jax.report import statistics
from fer_jax.runs.record import decode_predictions, encode_predictions
from fer_jax.study.plan import RUNS

ARRAYS = default_data_dir() / "fer2013" / "jpeg" / VERSIONS["fer2013"] / "arrays"
COPIES = {"valid": 280, "test": 288}
RECORDS = sorted(RUNS.rglob("*.json"))


def made_up_labels(split):
    random = np.random.default_rng(len(split))
    labels = random.permutation(np.repeat(np.arange(7), sources.COUNTS[split]))
    numbers = 50_000 + np.cumsum(random.integers(1, 9, len(labels)))
    in_train = random.permutation(np.arange(len(labels)) < COPIES[split])
    return Labels([f"{USAGES[split]}_{number}" for number in numbers], labels, in_train)


LABELS = {split: made_up_labels(split) for split in USAGES}
IDS, TRUE = LABELS["test"].ids, LABELS["test"].labels


_READ, _READ_RECORDS = labels_fer2013.read, score._records
_read_labels = functools.cache(_READ)
_read_records = functools.cache(_READ_RECORDS)


def _slow_but_for_seed_0(path):
    fast = path.parent == RUNS and path.stem.startswith("arch") and path.stem.endswith("seed0")
    name = str(path.relative_to(RUNS).with_suffix(""))
    return pytest.param(path, id=name, marks=() if fast else pytest.mark.slow)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setattr(labels_fer2013, "read", lambda: LABELS)
    monkeypatch.setattr(score, "_records", made_up_records)


@pytest.fixture
def real(monkeypatch):
    """The data set's labels, and the repository's records; each read once in a process."""
    if not ARRAYS.exists():
        pytest.skip(f"FER2013's labels are not here: no {ARRAYS}")
    monkeypatch.setattr(labels_fer2013, "read", _read_labels)
    monkeypatch.setattr(score, "_records", _read_records)
    return _read_labels()


def write(path, rows, header=("image", *CLASSES)):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return path


def guesses(labels=TRUE, accuracy=0.7, seed=0):
    """Returns classes of which about a share is right."""
    random = np.random.default_rng(seed)
    return np.where(random.random(len(labels)) < accuracy, labels, random.integers(0, 7, 1)[0])


def soft(classes, most=0.7):
    """Returns rows of probabilities, as text, whose largest is that of the class."""
    values = np.full((len(classes), 7), (1 - most) / 6)
    values[np.arange(len(classes)), classes] = most
    return values


def rows(values=None, ids=IDS):
    values = soft(guesses()) if values is None else np.asarray(values)
    return [[name, *value] for name, value in zip(ids, values.tolist(), strict=True)]


@functools.cache
def made_up_records():
    """Three records, one of them from a GPU."""
    dataset = SimpleNamespace(splits=LABELS)
    found = []
    for seed, (experiment, platform) in enumerate((("a", "cpu"), ("b", "cpu"), ("a", "gpu"))):
        packed = {
            split: encode_predictions(dataset, split, soft(guesses(labels.labels, seed=seed + 1)))
            for split, labels in LABELS.items()
        }
        about = {"experiment": experiment, "seed": seed, "device": {"platform": platform}}
        found.append(about | {"predictions": packed})
    return found


def fields(path, **options):
    return score.score(path, **options)["splits"]["test"]


# The labels of the data set


def test_the_labels_are_the_published_ones(real):
    for split, usage in USAGES.items():
        ids, labels, in_train = real[split]
        assert tuple(np.bincount(labels, minlength=7)) == sources.COUNTS[split]
        numbers = [int(name.removeprefix(f"{usage}_")) for name in ids]
        assert numbers == sorted(set(numbers))
        assert in_train.sum() == COPIES[split]


def test_the_labels_have_the_order_of_the_records(real):
    assert RECORDS
    for path in RECORDS:
        packed = json.loads(path.read_text(encoding="utf-8"))["predictions"]
        for split in real:
            np.testing.assert_array_equal(decode_predictions(packed[split])[0], real[split].labels)


def test_a_prepared_data_sets_labels_are_taken_as_they_are(dataset):
    found = labels_fer2013.of_dataset(dataset)
    assert list(found) == ["valid", "test"]
    for split, (ids, labels, in_train) in found.items():
        assert ids[1] == f"{split}_1"
        np.testing.assert_array_equal(labels, dataset.splits[split].labels)
        assert in_train.sum() == {"valid": 0, "test": 2}[split]


def test_only_the_mirror_has_the_names(monkeypatch):
    monkeypatch.setattr(prepare, "load_dataset", lambda config: SimpleNamespace(kind="csv"))
    with pytest.raises(
        score.DataError, match="fer2013/csv is what is prepared here: prepare the mirror"
    ):
        _READ()


# The numbers


@pytest.mark.parametrize("path", [_slow_but_for_seed_0(path) for path in RECORDS])
def test_a_records_predictions_get_the_records_numbers(tmp_path, real, path):
    record = json.loads(path.read_text(encoding="utf-8"))
    for split in real:
        packed = record["predictions"][split]
        _, probabilities = decode_predictions(packed)
        file = write(tmp_path / f"{split}.csv", rows(probabilities, real[split].ids))
        found = score.score(file)["splits"][split]
        expected = dict(record["metrics"][split])
        loss = expected.pop("loss")
        # A record rounds probabilities to float16, which can make the two largest equal.
        largest = np.sort(probabilities, axis=1)[:, -2:]
        ties = int((largest[:, 0] == largest[:, 1]).sum())
        if ties == 0:
            assert {name: found[name] for name in expected} == expected
        for name in ("accuracy", "accuracy_unique"):
            assert found[name] == pytest.approx(expected[name], abs=1.001 * ties / 3300)
        if found["loss"] is not None:
            assert found["loss"] == pytest.approx(loss, abs=1e-3)
        else:
            assert (probabilities[np.arange(3589), real[split].labels] == 0).any()
        with np.errstate(divide="ignore"):
            error = statistics.calibration(real[split].labels, probabilities).error
        assert found["calibration"]["error"] == pytest.approx(error, abs=2e-3)
        (same,) = (
            row
            for row in found["comparisons"]
            if all(row[name] == record[name] for name in ("experiment", "seed"))
            and row["platform"] == record["device"]["platform"]
        )
        assert (same["only_these"], same["only_record"], same["p"]) == (0, 0, 1)
        assert same["accuracy"] == found["accuracy"]


def test_numbers_by_hand(tmp_path):
    classes = TRUE.copy()
    copies, others = np.flatnonzero(LABELS["test"].in_train), ~LABELS["test"].in_train
    wrong = [*copies[:20], *np.flatnonzero(others)[:30]]
    classes[wrong] = (TRUE[wrong] + 1) % 7
    found = fields(write(tmp_path / "a.csv", rows(soft(classes, 0.8))))
    assert found["accuracy"] == 1 - 50 / 3589
    assert found["accuracy_unique"] == 1 - 30 / 3301
    assert found["one_vs_rest_accuracy"] == pytest.approx(1 - 2 * (50 / 3589) / 7)
    assert found["loss"] == pytest.approx(-(3539 * np.log(0.8) + 50 * np.log(0.2 / 6)) / 3589)
    assert found["calibration"]["error"] == pytest.approx(1 - 50 / 3589 - 0.8)
    assert (found["count"], found["images"]) == (3589, 3589)
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high < 1


@pytest.mark.slow
@settings(deadline=None, max_examples=25)  # its first example imports SciPy
@given(st.integers(1, 4000), st.data())
def test_statistics_are_those_of_scipy_and_statsmodels(count, data):
    from scipy.stats import binomtest
    from statsmodels.stats.multitest import multipletests

    hits = data.draw(st.integers(0, count))
    interval = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert statistics.wilson_interval(hits, count) == pytest.approx(interval, abs=1e-7)
    first = np.arange(count) < hits
    expected = binomtest(hits, count).pvalue
    assert statistics.compare(first, ~first).p == pytest.approx(expected, rel=1e-9, abs=1e-300)
    p = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=9))
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


# What files may look like


SPELLINGS = ("angry", "Disgusted", " fear", "HAPPY", "sad", "surprised", "neutral")
FORMS = {
    "folders": lambda v: write_(rows(v, [f"test/x/{i}.jpg" for i in IDS])),
    "other case and ending": lambda v: write_(rows(v, [f"{i.lower()}.PNG" for i in IDS])),
    "backslashes": lambda v: write_(rows(v, [f"C:\\test\\{i}.jpg" for i in IDS])),
    "in any order": lambda v: write_(rows(v)[::-1]),
    "spellings": lambda v: write_(rows(v), ("file", *SPELLINGS)),
    "affixes": lambda v: write_(rows(v), ("file", *(f"p_{n.strip()}" for n in SPELLINGS))),
    "numbers": lambda v: write_(rows(v), ("file", *(f"prob_{i}" for i in range(7)))),
    "no names": lambda v: write_(rows(v), ("0", *map(str, range(1, 8)))),
    "no header": lambda v: write_(rows(v), None),
    "columns in another order": lambda v: write_(
        [[*row[:0:-1], row[0]] for row in rows(v)], (*CLASSES[::-1], "name")
    ),
    "an index and other columns": lambda v: write_(
        [[k, *row, "x"] for k, row in enumerate(rows(v))], ("", "file", *CLASSES, "note")
    ),
    "two decimals": lambda v: write_(rows(np.round(v, 2))),
    "semicolons": lambda v: write_(rows(v)).replace(",", ";"),
    "byte order mark": lambda v: "\ufeff" + write_(rows(v)),
    "classes": lambda v: write_(rows(v.argmax(1)[:, None]), ("image", "prediction")),
    "classes beside labels": lambda v: write_(
        [[i, t, c] for i, t, c in zip(IDS, TRUE, v.argmax(1), strict=True)],
        ("image", "label", "pred"),
    ),
    "names of classes": lambda v: write_(
        [[i, SPELLINGS[c]] for i, c in zip(IDS, v.argmax(1), strict=True)], ("image", "emotion")
    ),
    "classes as floats": lambda v: write_(rows(v.argmax(1)[:, None] * 1.0), ("image", "class")),
    "logits": lambda v: write_(rows(np.log(v) - 3)),
}


def write_(rows, header=("image", *CLASSES)):
    return "\n".join(",".join(map(str, row)) for row in ([header, *rows] if header else rows))


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_gives_the_same(tmp_path, form):
    values = soft(guesses())
    expected = fields(write(tmp_path / "expected.csv", rows(values)))
    path = tmp_path / "a.csv"
    path.write_text(FORMS[form](values), encoding="utf-8")
    scored = score.score(path)
    found = scored["splits"]["test"]
    kind = {"logits": "logits"}.get(form, "classes" if "classes" in form else "probabilities")
    assert scored["kind"] == kind
    for name in ("accuracy", "confusion", "accuracy_unique", "comparisons"):
        assert found[name] == expected[name]
    if kind != "classes" and form != "two decimals":
        assert found["loss"] == pytest.approx(expected["loss"])
        assert found["calibration"]["error"] == pytest.approx(expected["calibration"]["error"])


def test_parquet(tmp_path, monkeypatch):
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{name}") for name in ("", ".parquet"))
    values = soft(guesses())
    columns = {"image": list(IDS)} | dict(zip(CLASSES, values.T.astype("f4"), strict=True))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found, expected = fields(path), fields(write(tmp_path / "a.csv", rows(values)))
    assert found["confusion"] == expected["confusion"]
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(score.DataError, match=r"b\.parquet cannot be read as Parquet"):
        score.score(tmp_path / "b.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(score.ExtraError, match="pip install pyarrow, or save it as CSV"):
        score.score(path)


def test_both_splits_are_scored_apart(tmp_path):
    valid = LABELS["valid"]
    both = [*rows(), *rows(soft(guesses(valid.labels, 0.5)), valid.ids), ["Training_7", *[1] * 7]]
    scored = score.score(write(tmp_path / "a.csv", both))
    assert scored["splits"]["test"] == fields(write(tmp_path / "b.csv", rows()))
    assert scored["splits"]["valid"]["accuracy"] < scored["splits"]["test"]["accuracy"]
    assert "1 rows are of Training, which is not scored" in scored["notes"]
    assert "a claim is about PrivateTest" in score.to_text(scored)


def test_a_part_is_scored_if_asked_and_said_so(tmp_path):
    path = write(tmp_path / "a.csv", rows()[100:300])
    found = fields(path, partial=True)
    assert (found["count"], found["images"]) == (200, 3589)
    assert found["accuracy"] == (guesses() == TRUE)[100:300].mean()
    record = made_up_records()[1]
    _, theirs = decode_predictions(record["predictions"]["test"])
    (row,) = (row for row in found["comparisons"] if row["experiment"] == "b")
    assert row["accuracy"] == (theirs.argmax(1) == TRUE)[100:300].mean()
    assert "PrivateTest (test), ONLY 200 of 3,589 images" in score.to_text(
        score.score(path, partial=True)
    )


# What is wrong with files


def changed(change, header=("image", *CLASSES)):
    """Returns a file's text after a function changed its rows."""
    lines = rows()
    change(lines)
    return write_(lines, header)


def put(row, column, value):
    return lambda lines: lines[row].__setitem__(column, value)


BAD = {
    "empty": ("", "holds no row of predictions"),
    "only a header": (write_([]), "holds no row of predictions"),
    "a picture": ("\0\1", "is neither CSV in UTF-8 nor Parquet"),
    "fields": (changed(lambda r: r[4].append(1)), "line 6: 9 fields, not 8"),
    "a quotation mark": ('image,class\n"PrivateTest_1', "line 2: unexpected end of data"),
    "a class twice": (
        write_(rows(), ("image", "sad", *CLASSES[1:4], "sadness", *CLASSES[5:])),
        "the columns 'sad' and 'sadness' are both Sadness",
    ),
    "a name twice": (write_(rows(), ("image", *["fear"] * 7)), "the column 'fear' is there twice"),
    "no images": (
        write_([row[1:] for row in rows()], CLASSES),
        "no column names images, like PrivateTest_10131363",
    ),
    "no predictions": (
        write_([[i, 1, 2] for i in IDS], ("image", "width", "height")),
        "no predictions among its columns image, width, height",
    ),
    "two predictions": (
        write_([[i, 1, 2] for i in IDS], ("image", "label", "class")),
        "which column holds the predictions, 'label' or 'class'? Call it prediction",
    ),
    "a class missing": (
        write_([row[:-1] for row in rows()], ("image", *CLASSES[:-1])),
        "there is no column for Neutral",
    ),
    "missing": (
        changed(lambda r: r.__delitem__(slice(0, 2))),
        f"images of PrivateTest missing (2): {IDS[0]}, {IDS[1]}; --partial scores the others, and "
        "says so",
    ),
    "many missing": (
        changed(lambda r: r.__delitem__(slice(0, 1500))),
        f"images of PrivateTest missing (1,500): {IDS[0]}, {IDS[1]}, {IDS[2]}, ...; --partial",
    ),
    "double": (
        changed(lambda r: r.append(r[0])),
        f"images that stand twice (1): {IDS[0]} (line 2 and line 3591)",
    ),
    "unknown": (
        changed(lambda r: r.append(["PrivateTest_1", *r[0][1:]])),
        "unknown images (1): 'PrivateTest_1' (line 3591)",
    ),
    "no name": (changed(put(8, 0, "face8")), "unknown images (1): 'face8' (line 10)"),
    "none known": (
        write_([["Training_1", *[1 / 7] * 7]]),
        "no image of PublicTest or PrivateTest is in it",
    ),
    "NaN": (
        changed(put(2, 3, "nan")),
        "rows with a value that is no finite number (1): 'nan' (line 4)",
    ),
    "infinity": (changed(put(2, 3, "inf")), "no finite number (1): 'inf' (line 4)"),
    "an empty cell": (changed(put(2, 3, "")), "no finite number (1): '' (line 4)"),
    "a word": (changed(put(2, 3, "high")), "no finite number (1): 'high' (line 4)"),
    "a sum": (
        changed(put(2, 3, "0.99")),
        "rows of probabilities that are not in 0 to 1 or do not add up to 1 (1): line 4 (sum ",
    ),
    "a negative probability": (
        changed(lambda r: r[2].__setitem__(slice(1, 4), [-0.5, 0.5, 0.8])),
        "not in 0 to 1 or do not add up to 1 (1): line 4 (sum ",
    ),
    "percent": (
        write_(rows(100 * soft(guesses()))),
        "values are not negative and add up to 100 in the middle row: neither probabilities nor "
        "evidently logits. Divide each row by its sum, or say --logits",
    ),
    "classes from 1": (
        write_([[i, t + 1] for i, t in zip(IDS, TRUE, strict=True)], ("image", "class")),
        "no class, which is Anger, Disgust, Fear, Happiness, Sadness, Surprise, Neutral or 0 to 6 "
        "in this order (626): '7' (line",
    ),
    "a foreign class": (
        write_([[i, "contempt"] for i in IDS], ("image", "class")),
        "0 to 6 in this order (3,589): 'contempt' (line 2), 'contempt' (line 3), 'contempt' (line "
        "4), ...",
    ),
    "rows without the CSV": (
        write_([[k, 3] for k in range(32298, 35887)], ("row", "class")),
        "names images by rows of the competition's CSV, which the mirror's names do not tell: give "
        "that file too, with --csv=fer2013.csv",
    ),
    "all at once": (
        changed(lambda r: (put(3, 2, "x")(r), put(5, 0, "PrivateTest_5")(r), r.append(r[9]))),
        "a.csv cannot be scored:\n"
        "  unknown images (1): 'PrivateTest_5' (line 7)\n"
        f"  images that stand twice (1): {IDS[9]} (line 11 and line 3591)\n"
        f"  images of PrivateTest missing (1): {IDS[5]}; --partial scores the others, and "
        "says so\n"
        "  rows with a value that is no finite number (1): 'x' (line 5)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tmp_path, capsys, name):
    text, message = BAD[name]
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["score", str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"fer-jax: {path}")
    assert message in error


def test_what_cannot_be_opened_or_written_is_named(tmp_path, capsys):
    assert cli.main(["score", str(tmp_path / "nowhere.csv")]) == 2
    assert "nowhere.csv cannot be read: No such file or directory" in capsys.readouterr().err
    path = write(tmp_path / "a.csv", rows())
    assert cli.main(["score", str(path), f"--json={path}/x.json"]) == 2
    assert "x.json: " in capsys.readouterr().err
    assert cli.main(["score", str(path), f"--picture={tmp_path}/x.bmp"]) == 2
    assert "it ends in .png, .pdf or .svg" in capsys.readouterr().err


# What is suspicious


@pytest.mark.parametrize("name", score.ORDERS)
def test_another_order_of_the_classes_is_named(tmp_path, name):
    order = list(score.ORDERS[name])
    assert sorted(order) == list(range(7))
    theirs = [[i, order.index(c)] for i, c in zip(IDS, guesses(accuracy=0.6), strict=True)]
    scored = score.score(write(tmp_path / "a.csv", theirs, ("image", "class")))
    found = scored["splits"]["test"]
    expected = (guesses(accuracy=0.6) == TRUE).mean()
    assert found["other_order"] == {
        "name": name,
        "classes": [CLASSES[label] for label in order],
        "accuracy": pytest.approx(expected),
    }
    text = score.to_text(scored)
    assert f"{expected:.4f} would be right, instead of {found['accuracy']:.4f}:" in text
    assert f"{', '.join(CLASSES[label] for label in order)} ({name})" in text


def test_the_alphabets_order_is_that_of_the_mirrors_folders():
    order = score.ORDERS["alphabetical, as the mirror's folders"]
    assert [CLASSES[label] for label in order] == sorted(CLASSES)


@pytest.mark.parametrize("classes", [TRUE, guesses(accuracy=0.3), TRUE * 0 + 1, guesses(seed=5)])
def test_the_labels_order_is_not_called_another(tmp_path, classes):
    found = fields(write(tmp_path / "a.csv", rows(soft(classes))))
    assert found["other_order"] is None


def test_an_order_of_nobody_is_named_too(tmp_path):
    order = [3, 1, 0, 2, 6, 5, 4]
    theirs = [[i, order.index(c)] for i, c in zip(IDS, TRUE, strict=True)]
    found = fields(write(tmp_path / "a.csv", theirs, ("image", "class")))["other_order"]
    assert found["classes"] == [CLASSES[label] for label in order]
    assert found["accuracy"] == 1


def test_labels_given_as_predictions_are_noticed(tmp_path):
    path = write(tmp_path / "a.csv", zip(IDS, TRUE, strict=True), ("image", "label"))
    assert "every prediction is the label" in score.to_text(score.score(path))


def test_what_was_assumed_is_said(tmp_path):
    tied = rows()
    tied[0][1:] = [1 / 7] * 7
    scored = score.score(write(tmp_path / "a.csv", tied, None))
    assert "1 rows have several largest values: the first of them counts" in scored["notes"]
    assert f"columns are taken in the labels' order: {', '.join(CLASSES)}" in scored["notes"]
    scored = score.score(write(tmp_path / "a.csv", rows(soft(guesses(), 1.0))))
    assert scored["splits"]["test"]["loss"] is None
    assert "infinite: a label has probability 0" in score.to_text(scored)
    scored = score.score(write(tmp_path / "a.csv", rows(np.log(soft(guesses())))))
    assert (
        "values are taken for logits (or log-probabilities): some are negative" in scored["notes"]
    )
    scored = score.score(write(tmp_path / "a.csv", rows()), logits=True)
    assert scored["kind"] == "logits"
    assert "look like probabilities, but --logits says otherwise" in "".join(scored["notes"])


# Rows of the competition's CSV


@pytest.fixture
def competition(tmp_path, monkeypatch):
    """A small `fer2013.csv`: 14 rows of each usage, a copy of a training image in PrivateTest."""
    monkeypatch.setattr(sources, "COUNTS", dict.fromkeys(sources.COUNTS, (2,) * 7))
    lines = ["emotion,pixels,Usage"]
    for k, usage in enumerate(("Training", "PublicTest", "PrivateTest")):
        for i in range(14):
            shade = 20 if (usage, i) == ("PrivateTest", 3) else 20 * k + i
            if (usage, i) == ("Training", 0):
                shade = 20
            lines.append(f"{i % 7},{' '.join([str(shade)] * 48 * 48)},{usage}")
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_with_the_competitions_csv(tmp_path, competition):
    theirs = [[28 + i, (i + (i < 4)) % 7] for i in range(14)]
    scored = score.score(write(tmp_path / "a.csv", theirs, ("row", "class")), csv=competition)
    found = scored["splits"]["test"]
    assert (found["accuracy"], found["accuracy_unique"]) == (10 / 14, 10 / 13)
    assert (found["images"], found["count_unique"]) == (14, 13)
    assert found["comparisons"] == []
    assert "no paired tests" in "".join(scored["notes"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (range(14), "all its rows are of Training: rows are counted from 0 through the whole CSV, "
                    "in which PublicTest 14 to 27, PrivateTest 28 to 41 are scored"),
        (range(29, 43), "unknown rows (1): '42' (line 15)"),
        ([28, *range(28, 42)], "images that stand twice (1): 28 (line 2 and line 3)"),
        (range(28, 41), "images of PrivateTest missing (1): 41"),
    ],
)  # fmt: skip
def test_wrong_rows_are_named(tmp_path, competition, capsys, numbers, message):
    path = write(tmp_path / "a.csv", [[n, 1] for n in numbers], ("row", "class"))
    assert cli.main(["score", str(path), f"--csv={competition}"]) == 2
    assert message in capsys.readouterr().err


# The command


@pytest.mark.slow
def test_the_command_writes_text_json_and_a_picture(tmp_path, capsys):
    from PIL import Image

    path = write(tmp_path / "a.csv", rows())
    arguments = [f"--json={tmp_path}/a.json", f"--picture={tmp_path}/a.png"]
    assert cli.main(["score", str(path), *arguments]) == 0
    out = capsys.readouterr().out
    scored = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    plain = json.loads(json.dumps(score.score(path)))
    assert scored == plain
    test = scored["splits"]["test"]
    assert f"accuracy                    {test['accuracy']:.4f}   95 %: " in out
    assert "(Wilson)" in out
    assert max(map(len, out.splitlines())) <= 100
    assert len(test["comparisons"]) == len(made_up_records())
    for row in test["comparisons"]:
        on = ", GPU" if row["platform"] == "gpu" else ""
        assert f"{row['experiment']}, seed {row['seed']}{on} " in out
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > image.height > 500
    write(path, zip(IDS, guesses(), strict=True), ("image", "class"))
    assert cli.main(["score", str(path), f"--picture={tmp_path}/b.svg"]) == 0
    assert "recall" not in (tmp_path / "b.svg").read_text(encoding="utf-8")[:100]


def test_without_records_the_rest_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "_records", _READ_RECORDS)
    monkeypatch.setattr("fer_jax.study.plan.RUNS", tmp_path / "nowhere")
    scored = score.score(write(tmp_path / "a.csv", rows()))
    assert scored["splits"]["test"]["comparisons"] == []
    assert "no paired tests: the records to compare with are in the repository" in scored["notes"]


def test_nothing_heavy_is_imported(tmp_path, real):
    path = write(tmp_path / "a.csv", rows(ids=real["test"].ids))
    program = (
        "import sys\nfrom fer_jax.apps import cli\ncli.main(['score', sys.argv[1]])\n"
        "names = ('jax', 'scipy', 'tensorflow', 'matplotlib', 'pandas', 'statsmodels', 'pyarrow')\n"
        "print([n for n in names if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
