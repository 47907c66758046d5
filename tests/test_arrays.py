"""Prepared arrays: what is written is opened, what does not fit is refused, no TFDS needed."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from ml_collections import ConfigDict

from fer_jax.data import prepare as preparing
from fer_jax.data.arrays import open_arrays, write_arrays
from fer_jax.data.dataset import VERSIONS
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import DataError

COUNTS = {"train": 5, "valid": 3, "test": 2}
SOURCE = {"name": "fer2013", "kind": "jpeg", "sha256": "abc"}


def make_splits():
    rng = np.random.default_rng(0)
    splits = {}
    for split, n in COUNTS.items():
        images = rng.integers(0, 256, (n, 48, 48, 1), dtype=np.uint8)
        labels = rng.integers(0, 7, n).astype(np.uint8)
        splits[split] = (images, labels, np.array([f"{split}_{i}" for i in range(n)], np.bytes_))
    splits["valid"][0][1] = splits["train"][0][4]
    splits["test"][0][0] = splits["train"][0][0]
    splits["test"][0][1] = splits["valid"][0][0]  # not in train
    return splits


@pytest.fixture
def folder(tmp_path):
    write_arrays(tmp_path / "1.0.0" / "arrays", make_splits(), SOURCE)
    return tmp_path / "1.0.0" / "arrays"


def test_what_is_written_is_opened(folder):
    dataset = open_arrays(folder)
    assert (dataset.name, dataset.kind, dataset.source_sha256) == ("fer2013", "jpeg", "abc")
    assert list(dataset.splits) == ["train", "valid", "test"]
    for split, (images, labels, ids) in make_splits().items():
        opened = dataset.splits[split]
        assert isinstance(opened.images, np.memmap)
        assert not opened.images.flags.writeable
        for found, expected in zip(
            (opened.images, opened.labels, opened.ids), (images, labels, ids), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_in_train_marks_exact_copies(folder):
    splits = open_arrays(folder).splits
    assert list(splits["train"].in_train) == [False] * 5
    assert list(splits["valid"].in_train) == [False, True, False]
    assert list(splits["test"].in_train) == [True, False]


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("field", ["images", "labels", "ids", "in_train"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "shorter", "text", "pickle"])
def test_damaged_arrays(folder, split, field, damage):
    path = folder / f"{split}_{field}.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "shorter":
        np.save(path, np.load(path)[:-1])
    elif damage == "text":
        path.write_text("not an array")
    else:
        np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=rf"{split}_{field}\.npy.* Remove the folder .*1\.0\.0 to"):
        open_arrays(folder)


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("field", ["images", "labels", "ids", "in_train"])
@pytest.mark.parametrize("damage", ["zeros", "one bit"])
def test_changed_bytes_behind_a_whole_header(folder, split, field, damage):
    path = folder / f"{split}_{field}.npy"
    array = np.load(path)
    data = bytearray(path.read_bytes())
    start = len(data) - array.nbytes
    if damage == "zeros":  # what a power cut leaves
        data[start:] = bytes(array.nbytes)
    else:
        data[start + array.nbytes // 2] ^= 1
    changed = data != path.read_bytes()
    path.write_bytes(data)
    if changed:  # the training split's in_train is all zeros as it is
        with pytest.raises(
            DataError, match=rf"{split}_{field}\.npy: .* Remove the folder .* again"
        ):
            open_arrays(folder)
    else:
        assert (split, field) == ("train", "in_train")


def test_everything_is_on_the_disk_before_the_folder_is_renamed(tmp_path, monkeypatch):
    synced = set()
    fsync = os.fsync

    def note(descriptor):
        fsync(descriptor)
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    write_arrays(tmp_path / "arrays", make_splits(), SOURCE)
    assert synced == {str(path) for path in (tmp_path / "arrays").iterdir()}


def test_classes_are_kept(tmp_path):
    splits = make_splits()
    for _, labels, _ in splits.values():
        labels %= 2
    write_arrays(tmp_path / "v" / "arrays", splits, SOURCE, ("cat", "dog"))
    assert open_arrays(tmp_path / "v" / "arrays").classes == ("cat", "dog")
    np.save(tmp_path / "v" / "arrays" / "test_labels.npy", np.full(2, 2, np.uint8))
    with pytest.raises(DataError, match=r"test_labels\.npy: holds label 2, allowed are 0..1"):
        open_arrays(tmp_path / "v" / "arrays")


def test_labels_out_of_range(folder):
    np.save(folder / "train_labels.npy", np.full(5, 7, np.uint8))
    with pytest.raises(DataError, match=r"train_labels\.npy: holds label 7"):
        open_arrays(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "source": 3, "counts": 3}']
)
def test_damaged_metadata(folder, text):
    (folder / "metadata.json").write_text(text)
    with pytest.raises(DataError, match=r"metadata\.json"):
        open_arrays(folder)


def test_other_format(folder):
    metadata = json.loads((folder / "metadata.json").read_text()) | {"format": 99}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match="format is 99, this program reads 2"):
        open_arrays(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/metadata\.json"):
        open_arrays(tmp_path / "nowhere")


# load_dataset


def config_of(tmp_path, **fields):
    defaults = {"name": "fer2013", "source": None, "data_dir": str(tmp_path), "partial": False}
    return ConfigDict(defaults | fields)


def prepare(data_dir, kind, sha256="abc", name="fer2013"):
    folder = data_dir.joinpath(*filter(None, (name, kind, VERSIONS[name], "arrays")))
    write_arrays(folder, make_splits(), {"name": name, "kind": kind or name, "sha256": sha256})


@pytest.fixture
def no_preparing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"prepares {args} {kwargs}")

    monkeypatch.setattr(preparing, "_prepare", refuse)


def make_source(tmp_path, name="fer2013.csv", header="emotion,pixels,Usage"):
    path = tmp_path / name
    path.write_text(header + "\n")
    return path


@pytest.mark.usefixtures("no_preparing")
def test_prepared_kinds_in_their_order(tmp_path):
    prepare(tmp_path, "icml_csv")
    assert load_dataset(config_of(tmp_path)).kind == "icml_csv"
    prepare(tmp_path, "csv")
    assert load_dataset(config_of(tmp_path)).kind == "csv"
    prepare(tmp_path, "jpeg")
    assert load_dataset(config_of(tmp_path)).kind == "jpeg"


@pytest.mark.usefixtures("no_preparing")
def test_a_partial_set_is_used_only_when_asked_for(tmp_path):
    prepare(tmp_path, "jpeg_partial")
    assert load_dataset(config_of(tmp_path, partial=True)).kind == "jpeg_partial"
    prepare(tmp_path, "csv")
    assert load_dataset(config_of(tmp_path)).kind == "csv"


@pytest.mark.usefixtures("no_preparing")
def test_a_matching_source_is_accepted_and_another_refused(tmp_path):
    from fer_jax.data.sources import recognise

    source = make_source(tmp_path)
    prepare(tmp_path, "csv", recognise(source).sha256)
    config = config_of(tmp_path, source=str(source))
    assert load_dataset(config).source_sha256 == recognise(source).sha256
    source.write_text("emotion,pixels,Usage\nchanged\n")
    with pytest.raises(DataError, match=r"another source .*Remove that folder"):
        load_dataset(config)


def test_what_is_not_prepared_is_prepared(tmp_path, monkeypatch):
    calls = []

    def fake(name, data_dir, size, config=None, source=None):
        from fer_jax.data.sources import recognise

        calls.append((name, config, source and str(source)))
        prepare(tmp_path, config, recognise(source).sha256 if source else "drawn", name)

    monkeypatch.setattr(preparing, "_prepare", fake)
    source = str(make_source(tmp_path, "icml_face_data.csv", "emotion, Usage, pixels"))
    for _ in range(2):  # the second time it is there
        load_dataset(config_of(tmp_path, source=source, partial=True))
        load_dataset(config_of(tmp_path, name="synthetic_faces"))
    expected = [("fer2013", "icml_csv_partial", source), ("synthetic_faces", None, None)]
    assert calls == expected


def test_the_manual_folder_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    source = make_source(tmp_path / "downloads" / "manual")

    def fake(name, data_dir, size, config, source):
        raise DataError(f"{name} {config} {source}")

    monkeypatch.setattr(preparing, "_prepare", fake)
    with pytest.raises(DataError, match=f"fer2013 csv {source}"):
        load_dataset(config_of(tmp_path))


@pytest.mark.parametrize("name", ["fer2013", "synthetic_faces"])
@pytest.mark.parametrize("field", ["source", "data_dir"])
@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.usefixtures("no_preparing")
def test_empty_paths_are_refused(tmp_path, name, field, value):
    with pytest.raises(DataError, match=rf"config\.data\.{field} is empty"):
        load_dataset(config_of(tmp_path, **{"name": name, field: value}))


def test_a_data_dir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        config = config_of(tmp_path / name, name="synthetic_faces")
        with pytest.raises(DataError, match=r"cannot prepare .* 50 MB .*--config\.data\.data_dir"):
            load_dataset(config)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"No space left on device.* 50 MB"):
        load_dataset(config_of(tmp_path, name="synthetic_faces"))


def test_drawn_faces_take_no_source(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.source is 'x', but synthetic_faces"):
        load_dataset(config_of(tmp_path, name="synthetic_faces", source="x"))


def test_data_dir_is_that_of_tfds(tmp_path, monkeypatch):
    prepare(tmp_path, "jpeg")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load_dataset(config_of(tmp_path, data_dir=None)).kind == "jpeg"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert preparing.default_data_dir() == tmp_path / "tensorflow_datasets"


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_prepared_dataset_needs_neither_tfds_nor_tensorflow(tmp_path):
    prepare(tmp_path, "jpeg")
    code = """
        import sys
        absent = {"tensorflow", "tensorflow_datasets", "PIL", "kagglehub"}
        class Absent:
            def find_spec(name, path=None, target=None):
                if name in absent:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent)
        from types import SimpleNamespace
        from fer_jax.data import DataError, load_dataset
        config = SimpleNamespace(name="fer2013", source=None, data_dir=None, partial=False)
        print(load_dataset(config).kind)
        try:
            config.name = "synthetic_faces"
            load_dataset(config)
        except DataError as error:
            print(error)
        """
    done = run_python(code, TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("jpeg\n")
    assert "needs the packages tensorflow and tensorflow_datasets" in done.stdout
