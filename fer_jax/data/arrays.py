"""Prepared splits as memory-mapped uint8 arrays, beside the TFDS files they were written with.

NumPy only: a prepared data set is opened without importing TensorFlow or TFDS. It lies in
``<data_dir>/<name>/<kind>/<version>/arrays/`` (no ``<kind>`` where a builder has no configs).
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fer_jax import seal
from fer_jax.data.dataset import Dataset, Examples, Split
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SIDE, SPLITS

_FORMAT = 2  # of metadata.json
_FIELDS = ("images", "labels", "ids", "in_train")


def write_arrays(
    folder: Path,
    splits: Mapping[str, Examples],
    source: Mapping[str, str],
    classes: Sequence[str] = CLASSES,
) -> None:
    """Writes the splits to a new folder; to be called inside a folder that is renamed when whole.

    All is on the disk when this returns, so that no renamed folder holds blank pages after a power
    cut.

    Args:
      folder: is created and must not exist.
      splits: "train", "valid", "test" -> (images, labels, ids), shaped as in `Split`.
      source: strings with the keys "name", "kind" and "sha256" (see `Dataset`).
      classes: names in the order of the labels.
    """
    folder.mkdir(parents=True)
    train = {image.tobytes() for image in splits["train"][0]}
    counts, checksums = {}, {}
    for split in SPLITS:
        images, labels, ids = splits[split]
        in_train = np.array([split != "train" and i.tobytes() in train for i in images], bool)
        for field, array in zip(_FIELDS, (images, labels, ids, in_train), strict=True):
            with (folder / f"{split}_{field}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _flush(file)
            checksums[f"{split}_{field}"] = _checksum(array)
        counts[split] = len(images)
    metadata = {
        "format": _FORMAT,
        "source": dict(source),
        "classes": list(classes),
        "counts": counts,
        "crc32": checksums,
    }
    with (folder / "metadata.json").open("w", encoding="utf-8") as file:
        file.write(json.dumps(seal.add(metadata), indent=1) + "\n")
        _flush(file)


def open_arrays(folder: str | os.PathLike) -> Dataset:
    """Opens what `write_arrays` wrote, and checks that every array still is what was written.

    Raises:
      DataError: naming the file that is missing, unreadable, damaged or does not fit the others.
    """
    folder = Path(folder)
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format is {metadata['format']}, this program reads {_FORMAT}")
        if seal.is_broken(metadata):
            raise ValueError("it is not what was written: it was damaged")
        source, checksums = metadata["source"], metadata["crc32"]
        name, kind, sha256 = source["name"], source["kind"], source["sha256"]
        classes = tuple(map(str, metadata["classes"]))
        expected = {
            split: {field: int(checksums[f"{split}_{field}"]) for field in _FIELDS}
            for split in SPLITS
        }
        sizes = {split: int(metadata["counts"][split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    splits = {
        split: _open_split(folder, split, sizes[split], expected[split], len(classes))
        for split in SPLITS
    }
    return Dataset(name, kind, sha256, splits, classes, _content(expected))


def _content(checksums: Mapping[str, Mapping[str, int]]) -> str:
    """Returns the CRC-32 of the splits' images and labels, in hexadecimal, in one string."""
    numbers = (checksums[split][field] for split in SPLITS for field in ("images", "labels"))
    return "".join(f"{number:08x}" for number in numbers)


def _open_split(
    folder: Path, split: str, n: int, checksums: Mapping[str, int], classes: int
) -> Split:
    expected = {
        "images": ((n, SIDE, SIDE, 1), "u"),
        "labels": ((n,), "u"),
        "ids": ((n,), "S"),
        "in_train": ((n,), "b"),
    }
    arrays = {}
    for field, (shape, dtype_kind) in expected.items():
        path = folder / f"{split}_{field}.npy"
        try:
            array = np.load(path, mmap_mode="r" if field == "images" else None)
        except Exception as error:  # NumPy raises many things on damaged files
            raise _damaged(path, repr(error)) from error
        if array.shape != shape or array.dtype.kind != dtype_kind:
            what = f"holds {array.dtype}{list(array.shape)}, not {list(shape)} of kind {dtype_kind}"
            raise _damaged(path, what)
        if field == "labels" and n and array.max() >= classes:
            raise _damaged(path, f"holds label {array.max()}, allowed are 0..{classes - 1}")
        if _checksum(array) != checksums[field]:
            raise _damaged(path, "its checksum is not the one in metadata.json: it was damaged")
        arrays[field] = array
    return Split(**arrays)


def _checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}. Remove the folder {path.parent.parent} to prepare it again")
