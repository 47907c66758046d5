import csv
import errno
import io
import json
import stat

import numpy as np
import pytest

from fer_jax.apps import table
from fer_jax.apps.crop import Square
from fer_jax.apps.predictor import Face
from fer_jax.apps.table import Table
from fer_jax.errors import RecordError
from fer_jax.labels import CLASSES


def face(seed: int = 0, score: float | None = 0.912345) -> Face:
    random = np.random.default_rng(seed)
    box = np.array([1.234, -5.678, 90.5, 110.25])
    image = np.zeros((48, 48), np.uint8)
    probabilities = random.dirichlet(np.ones(7)).astype(np.float32)
    return Face(box, score, np.zeros((5, 2)), Square(1, 2, 3), image, probabilities)


def write(path, kind="json", weights="w", files=("a.jpg",)):
    with Table(path, kind, CLASSES, weights) as rows:
        for file in files:
            with rows.collect(file) as add:
                add(None, None, [face(len(file))])
    return path


def test_the_schema_of_json_lines(tmp_path):
    path = tmp_path / "new" / "t.jsonl"
    with Table(path, "json", CLASSES, "small") as rows:
        with rows.collect("Mummé 中.jpg") as add:
            add(None, None, [face(0), face(1)])
        with rows.collect("clip.mp4") as add:
            add(3, 0.12, [])
    first, second, third = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert list(first) == [
        *("file", "frame", "time_s", "face", "box", "score", "probabilities", "weights")
    ]
    assert first | {"probabilities": None} == {
        "file": "Mummé 中.jpg",
        "frame": None,
        "time_s": None,
        "face": 0,
        "box": [1.23, -5.68, 90.5, 110.25],
        "score": 0.9123,
        "probabilities": None,
        "weights": "small",
    }
    assert list(first["probabilities"]) == [
        *("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
    ]
    assert second["face"] == 1
    assert third == {
        "file": "clip.mp4",
        "frame": 3,
        "time_s": 0.12,
        "face": None,
        "box": None,
        "score": None,
        "probabilities": None,
        "weights": "small",
    }


def test_the_schema_of_csv(tmp_path):
    path = tmp_path / "t.csv"
    with Table(path, "csv", CLASSES, "small") as rows, rows.collect('a, "b".jpg') as add:
        add(0, 0.0, [face(0)])
        add(1, 0.1, [])
    with path.open(encoding="utf-8", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == [
        *("file", "frame", "time_s", "face", "left", "top", "width", "height", "score"),
        *("probability_Anger", "probability_Disgust", "probability_Fear"),
        *("probability_Happiness", "probability_Sadness", "probability_Surprise"),
        *("probability_Neutral", "weights"),
    ]
    assert first[:9] == [
        *('a, "b".jpg', "0", "0.0", "0", "1.23", "-5.68", "90.5", "110.25", "0.9123")
    ]
    found = np.array(first[9:16], float).astype(np.float32)
    np.testing.assert_array_equal(found, face(0).probabilities)
    assert second == ['a, "b".jpg', "1", "0.1", *[""] * 13, "small"]


def test_probabilities_are_the_same_float32_when_read(tmp_path):
    path = write(tmp_path / "t.jsonl")
    read = json.loads(path.read_text(encoding="utf-8"))["probabilities"]
    np.testing.assert_array_equal(
        np.array(list(read.values())).astype(np.float32), face(len("a.jpg")).probabilities
    )


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_table_goes_on(tmp_path, kind):
    path = write(tmp_path / "t", kind, files=("a.jpg", "c\nd.jpg".replace("\n", "\\n")))
    before = path.read_bytes()
    with Table(path, kind, CLASSES, "w") as rows:
        assert rows.done == {"a.jpg", "c\\nd.jpg"}
        with rows.collect("b.jpg") as add:
            add(None, None, [])
        assert rows.faceless == {"b.jpg"}
    assert path.read_bytes().startswith(before)
    with Table(path, kind, CLASSES, "w") as rows:
        assert rows.done == {"a.jpg", "b.jpg", "c\\nd.jpg"}
        assert rows.faceless == {"b.jpg"}


def test_a_table_is_written_by_one_process_at_a_time(tmp_path):
    path = write(tmp_path / "t.jsonl", files=("a.jpg", "b.jpg"))
    with Table(path, "json", CLASSES, "w") as rows:
        for _ in range(2):
            with pytest.raises(RecordError, match=r"another process is writing .*t.jsonl"):
                Table(path, "json", CLASSES, "w")
            rows.forget(["a.jpg"])  # which makes the file anew
    with Table(path, "json", CLASSES, "w") as rows:
        assert rows.done == {"b.jpg"}


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_table_cut_anywhere_loses_only_its_last_file(tmp_path, kind):
    names = ("a.jpg", "Mummé 中.jpg")
    whole = write(tmp_path / "whole", kind, files=names).read_bytes()
    one = len(write(tmp_path / "one", kind, files=names[:1]).read_bytes())
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        write(path, kind, files=[n for n in names if n not in _done(path, kind)])
        if length == one or length >= one + 5:
            assert path.read_bytes() == whole, length
        else:  # cut within the first file
            assert _done(path, kind) == set(names), length


def _done(path, kind):
    with Table(path, kind, CLASSES, "w") as rows:
        return set(rows.done)


def test_rows_of_a_file_that_fails_are_not_written(tmp_path):
    path = write(tmp_path / "t.jsonl")
    before = path.read_bytes()
    with Table(path, "json", CLASSES, "w") as rows:

        def fail():
            with rows.collect("b.mp4") as add:
                add(0, 0.0, [face()])
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert "b.mp4" not in rows.done
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_cut_camera_loses_only_the_cut_line(tmp_path, kind):
    path = write(tmp_path / "t", kind)
    with Table(path, kind, CLASSES, "w") as rows:
        for i in range(3):
            with rows.collect("camera0") as add:
                add(i, i / 10, [face(i)])
    whole = path.read_bytes()
    kept = whole[: whole[:-1].rindex(b"\n") + 1]
    path.write_bytes(whole[:-20])
    assert _done(path, kind) == {"a.jpg"}  # a camera is never done
    assert path.read_bytes() == kept


@pytest.mark.parametrize("name", ["b.mp4", "camera0"])
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_first_row_that_is_cut_costs_no_other_file(tmp_path, kind, name):
    path = write(tmp_path / "t", kind, files=("Mummé, 中.jpg",))
    kept = path.read_bytes()
    with Table(path, kind, CLASSES, "w") as rows, rows.collect(name) as add:
        add(0, 0.0, [face()])
    path.write_bytes(path.read_bytes()[:-20])
    assert _done(path, kind) == {"Mummé, 中.jpg"}
    assert path.read_bytes() == kept


@pytest.mark.parametrize("left", [3, 60])  # bytes of the row that is cut
@pytest.mark.parametrize("name", ["b, c.mp4", "Mummé 中.mp4", "\udcff.mp4"])
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_later_row_that_is_cut_costs_its_whole_file(tmp_path, kind, name, left):
    path = write(tmp_path / "t", kind)
    kept = path.read_bytes()
    with Table(path, kind, CLASSES, "w") as rows, rows.collect(name) as add:
        add(0, 0.0, [face()])
        add(1, 0.1, [face()])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1 + left])
    assert _done(path, kind) == {"a.jpg"}
    assert path.read_bytes() == kept


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_forgotten_file_is_not_done_and_has_no_rows(tmp_path, kind):
    path = write(tmp_path / "t", kind, files=("a.jpg", "b.jpg", "c.jpg"))
    expected = write(tmp_path / "expected", kind, files=("a.jpg", "c.jpg", "d.jpg")).read_bytes()
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    with Table(tmp_path / "link", kind, CLASSES, "w") as rows:
        rows.forget({"b.jpg"})
        assert rows.done == {"a.jpg", "c.jpg"}
        with rows.collect("d.jpg") as add:
            add(None, None, [face(len("d.jpg"))])
    assert path.read_bytes() == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert {each.name for each in tmp_path.iterdir()} == {"t", "expected", "link"}


class _FullDisk(io.BytesIO):
    """Takes nothing, and says so when it is closed too, as a file does that has bytes left."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        self.flush()


def test_a_full_disk_is_one_error_to_the_end(tmp_path):
    def fail():
        with Table(tmp_path / "t", "json", CLASSES, "w") as rows:
            rows._file.close()
            rows._file = _FullDisk()
            with rows.collect("a.jpg") as add:
                add(None, None, [face()])

    with pytest.raises(RecordError, match=r"cannot write .*t: No space left"):
        fail()


def test_a_full_disk_for_many_rows_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(table.tempfile, "SpooledTemporaryFile", lambda _: _FullSpool())

    def fail():
        with Table(tmp_path / "t", "json", CLASSES, "w") as rows, rows.collect("a.mp4") as add:
            add(0, 0.0, [face()])

    with pytest.raises(RecordError, match=r"cannot write .*t: No space left"):
        fail()


class _FullSpool(_FullDisk):
    def write(self, data):
        self.flush()


def test_many_rows_are_written_whole(tmp_path, monkeypatch):
    """Over the sizes at which rows go to the disk, and are copied in parts."""
    monkeypatch.setattr(table, "_CHUNK", 1000)
    monkeypatch.setattr(table, "_MEMORY", 5000)
    path = tmp_path / "t.jsonl"
    with Table(path, "json", CLASSES, "w") as rows, rows.collect("a.mp4") as add:
        for i in range(200):
            add(i, i / 10, [face(i)])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(200))


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_another_weights_table_is_refused(tmp_path, kind):
    path = write(tmp_path / "t", kind, weights="old")
    with pytest.raises(RecordError, match=r"was made with the weights 'old', these are 'new'"):
        Table(path, kind, CLASSES, "new")
    path = write(tmp_path / "named", kind, weights="net@2@01234567")
    with pytest.raises(RecordError, match=r"made with the weights 'net@2@01234567', these are"):
        Table(path, kind, CLASSES, "net@2@76543210")


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_same_weights_go_on_under_another_name(tmp_path, kind):
    path = write(tmp_path / "t", kind, weights="net@2@01234567")
    write(path, kind, weights="model@01234567", files=("b.jpg",))
    with Table(path, kind, CLASSES, "again@01234567") as rows:
        assert rows.done == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("text", ["hello\n", "hello", "{}\n", '{"file": "a"}\n', "file,frame\n"])
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, kind, text):
    path = tmp_path / "t"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"t is no table of `fer-jax predict`.*line 1"):
        Table(path, kind, CLASSES, "w")
    assert path.read_text(encoding="utf-8") == text


def test_the_other_format_is_refused(tmp_path):
    path = write(tmp_path / "t", "json")
    with pytest.raises(RecordError, match="in this format"):
        Table(path, "csv", CLASSES, "w")


def test_a_table_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RecordError, match="cannot write"):
        Table(tmp_path, "json", CLASSES, "w")
