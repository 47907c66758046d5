"""The TFDS builder, end to end on small sources: the only tests of data that import TensorFlow."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from test_sources import ARCHIVE, GOOD, ROWS, write_csv, write_zip

from fer_jax import data
from fer_jax.data import builder as builders
from fer_jax.data import sources
from fer_jax.data.arrays import open_arrays
from fer_jax.data.dataset import VERSIONS
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES


def config_of(data_dir, source=None, **fields):
    defaults = {"name": "fer2013", "data_dir": str(data_dir), "partial": True}
    return ConfigDict(defaults | {"source": source and str(source)} | fields)


def builder_of(data_dir, config, source=None):
    return tfds.builder("fer2013", config=config, data_dir=str(data_dir), source=source)


data.register()
pytestmark = pytest.mark.slow  # TensorFlow takes 10 s to import


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("source") / "archive.zip", GOOD)


@pytest.fixture(scope="module")
def dataset(data_dir, archive):
    return load_dataset(config_of(data_dir, archive))


def test_arrays_are_the_source(dataset, archive):
    assert dataset.kind == "jpeg_partial"
    source = sources.recognise(archive)
    splits = sources.read_source(source, partial=True)
    assert dataset.source_sha256 == source.sha256
    for name, split in dataset.splits.items():
        for found, expected in zip(
            (split.images, split.labels, split.ids), splits[name], strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_tfds_files_hold_the_same(dataset, data_dir):
    for name, split in dataset.splits.items():
        examples = tfds.load("fer2013/jpeg_partial", split=name, data_dir=str(data_dir))
        examples = list(examples.as_numpy_iterator())
        np.testing.assert_array_equal([e["image"] for e in examples], split.images)
        np.testing.assert_array_equal([e["label"] for e in examples], split.labels)
        assert [e["id"] for e in examples] == list(split.ids)


def test_info(dataset, data_dir):
    info = builder_of(data_dir, "jpeg_partial").info
    assert info.features["label"].names == list(CLASSES)
    assert info.features["image"].shape == (48, 48, 1)
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 2,
        "valid": 1,
        "test": 1,
    }


def test_default_config_and_names():
    configs = [c.name for c in tfds.builder_cls("fer2013").BUILDER_CONFIGS]
    kinds = ["jpeg", "csv", "icml_csv"]
    assert configs == kinds + [f"{kind}_partial" for kind in kinds]


def test_tfds_load_with_a_source(tmp_path):
    source = write_csv(tmp_path / "fer2013.csv")
    loaded = tfds.load(
        "fer2013/csv_partial", data_dir=str(tmp_path), builder_kwargs={"source": source}
    )
    assert {name: len(split) for name, split in loaded.items()} == {
        "train": 2,
        "valid": 1,
        "test": 1,
    }


def test_tfds_load_from_the_manual_folder(tmp_path):
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    write_zip(tmp_path / "downloads" / "manual" / "archive.zip", GOOD)
    assert len(tfds.load("fer2013/jpeg_partial", split="train", data_dir=str(tmp_path))) == 2


def test_another_source_is_refused(dataset, data_dir, tmp_path):
    source = write_zip(tmp_path / "archive.zip", GOOD | {"README": b"new"})
    with pytest.raises(DataError, match="prepared from another source"):
        load_dataset(config_of(data_dir, source))
    with pytest.raises(DataError, match="prepared from another source"):
        builder_of(data_dir, "jpeg_partial", source).download_and_prepare()


def test_config_and_source_must_fit(tmp_path):
    source = write_csv(tmp_path / "fer2013.csv")
    builder = builder_of(tmp_path, "jpeg_partial", source)
    with pytest.raises(DataError, match=r"use fer2013/csv_partial"):
        builder.download_and_prepare()


def leftovers(data_dir):
    return [
        p for p in data_dir.rglob("*") if p.name == VERSIONS["fer2013"] or "incomplete" in p.name
    ]


def test_a_bad_source_leaves_nothing(tmp_path):
    source = write_csv(tmp_path / "fer2013.csv", [*ROWS, "7,1,Training"])
    for partial in (True, False):
        with pytest.raises(DataError):
            load_dataset(config_of(tmp_path, source, partial=partial))
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("when", ["arrays", "records"])
def test_a_full_disk_leaves_nothing(tmp_path, archive, monkeypatch, when):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "arrays":
            patch.setattr(np, "save", fail)
        else:
            patch.setattr(builders, "_encode_png", fail)
        with pytest.raises(DataError, match=r"No space left.*180 MB.*--config\.data\.data_dir"):
            load_dataset(config_of(tmp_path, archive))
    assert not leftovers(tmp_path)
    assert load_dataset(config_of(tmp_path, archive)).kind == "jpeg_partial"


def test_the_second_of_two_at_once_waits_and_uses_the_first(tmp_path, archive, monkeypatch):
    first, second = (builder_of(tmp_path, "jpeg_partial", archive) for _ in range(2))
    read_source = sources.read_source
    others = []

    def slow(path, partial):
        others.append(threading.Thread(target=second.download_and_prepare))
        others[0].start()
        time.sleep(0.5)
        return read_source(path, partial)

    monkeypatch.setattr(sources, "read_source", slow)
    first.download_and_prepare()
    others[0].join()
    assert len(others) == 1  # the source was read once
    assert len(leftovers(tmp_path)) == 1  # the folder of the version itself
    assert open_arrays(second.data_path / "arrays").kind == "jpeg_partial"
    assert second.info.splits["train"].num_examples == 2
    assert len(second.as_dataset(split="train")) == 2


def test_what_a_killed_process_left_goes(tmp_path, archive):
    version = VERSIONS["fer2013"]
    left = tmp_path / "fer2013" / "jpeg_partial" / f"incomplete.ABC123_{version}" / "arrays"
    left.mkdir(parents=True)
    (left / "train_images.npy").write_bytes(b"x")
    load_dataset(config_of(tmp_path, archive))
    assert [p.name for p in leftovers(tmp_path)] == [version]


def test_our_own_line_and_none_of_tfds(tmp_path, archive, caplog, capfd):
    with caplog.at_level("INFO", "fer_jax"):
        load_dataset(config_of(tmp_path, archive))
    assert f"Preparing FER2013 from {archive} in {tmp_path}" in caplog.text
    captured = capfd.readouterr()
    assert "Downloading" not in captured.out + captured.err


def test_a_builder_can_be_pickled(tmp_path, archive):
    import pickle

    builder = pickle.loads(pickle.dumps(builder_of(tmp_path, "jpeg_partial", archive)))
    assert builder._source == archive


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import fer_jax.data.fer2013", ["fer2013"]),
        ("import fer_jax.data.synthetic_faces", ["synthetic_faces"]),
        ("from fer_jax import data; data.register()", ["fer2013", "synthetic_faces"]),
    ],
)
def test_builders_are_registered_by_their_import(tmp_path, code, names):
    code = f"""
{code}
import sys, tensorflow_datasets as tfds
for name in {names}:
    tfds.builder(name, data_dir={str(tmp_path)!r})
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"]


@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there")
def test_real_archive_by_two_processes_at_once(tmp_path):
    code = f"""
from types import SimpleNamespace
from fer_jax.data import load_dataset
load_dataset(SimpleNamespace(
    name="fer2013", source={str(ARCHIVE)!r}, data_dir={str(tmp_path)!r}, partial=False))
"""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    assert len(leftovers(tmp_path)) == 1
    start = time.perf_counter()
    dataset = load_dataset(config_of(tmp_path, partial=False))
    assert time.perf_counter() - start < 5
    for name, counts in sources.COUNTS.items():
        assert tuple(np.bincount(dataset.splits[name].labels, minlength=7)) == counts
    assert {name: int(split.in_train.sum()) for name, split in dataset.splits.items()} == {
        "train": 0,
        "valid": 280,
        "test": 288,
    }
