"""Prepared splits as memory-mapped uint8 arrays, beside the TFDS files they were written with.

NumPy only: a prepared dataset is opened without importing TensorFlow or TFDS. It lies in
``<data_dir>/<name>/<kind>/<version>/arrays/`` (no ``<kind>`` where a builder has no configs).
"""

import dataclasses
import json
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SIDE, SPLITS

VERSIONS = {"fer2013": "1.0.0", "synthetic_faces": "1.0.0"}  # raise one when its arrays change

_FORMAT = 1  # of metadata.json
_FIELDS = ("images", "labels", "ids", "in_train")

type Examples = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, ids: see Split


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, in a fixed order.

    Attributes:
      images: `[n, 48, 48, 1]` uint8, memory-mapped, read-only.
      labels: `[n]` uint8 in 0..6, indices into `CLASSES`.
      ids: `[n]` bytes, the example's name in its source, e.g. `b"PrivateTest_10131363"`.
      in_train: `[n]` bool, whether an image of the training split has exactly the same pixels;
        False throughout for the training split itself.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    in_train: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Attributes:
      name: of the TFDS builder, "fer2013" or "synthetic_faces".
      kind: name of the builder's config, e.g. "jpeg"; the dataset's name where it has none.
      source_sha256: SHA-256 of the source, in hexadecimal.
      splits: "train", "valid" and "test".
    """

    name: str
    kind: str
    source_sha256: str
    splits: dict[str, Split]


def write_arrays(folder: Path, splits: Mapping[str, Examples], source: Mapping[str, str]) -> None:
    """Writes the splits to a new folder; to be called inside a folder that is renamed when whole.

    Args:
      folder: is created and must not exist.
      splits: "train", "valid", "test" -> (images, labels, ids), shaped as in `Split`.
      source: strings with the keys "name", "kind" and "sha256" (see `Dataset`).
    """
    folder.mkdir(parents=True)
    train = {image.tobytes() for image in splits["train"][0]}
    counts = {}
    for split in SPLITS:
        images, labels, ids = splits[split]
        in_train = np.array([split != "train" and i.tobytes() in train for i in images], bool)
        for field, array in zip(_FIELDS, (images, labels, ids, in_train), strict=True):
            np.save(folder / f"{split}_{field}.npy", array, allow_pickle=False)
        counts[split] = len(images)
    metadata = {"format": _FORMAT, "source": dict(source), "counts": counts}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def open_arrays(folder: str | os.PathLike) -> Dataset:
    """Opens what `write_arrays` wrote.

    Raises:
      DataError: naming the file that is missing, unreadable or does not fit the others.
    """
    folder = Path(folder)
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
        source, counts = metadata["source"], metadata["counts"]
        name, kind, sha256 = source["name"], source["kind"], source["sha256"]
        sizes = {split: int(counts[split]) for split in SPLITS}
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format is {metadata['format']}, this program reads {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    splits = {split: _open_split(folder, split, n) for split, n in sizes.items()}
    return Dataset(name, kind, sha256, splits)


def _open_split(folder: Path, split: str, n: int) -> Split:
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
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path, repr(error)) from error
        if array.shape != shape or array.dtype.kind != dtype_kind:
            what = f"holds {array.dtype}{list(array.shape)}, not {list(shape)} of kind {dtype_kind}"
            raise _damaged(path, what)
        arrays[field] = array
    if n and arrays["labels"].max() >= len(CLASSES):
        path = folder / f"{split}_labels.npy"
        raise _damaged(path, f"holds label {arrays['labels'].max()}, allowed are 0..6")
    return Split(**arrays)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}. Remove the folder {path.parent.parent} to prepare it again")


def default_data_dir() -> Path:
    """Returns TFDS's own: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def load_dataset(config: Any) -> Dataset:
    """Opens a dataset, preparing it first where that has not been done.

    Without a source, a prepared `fer2013` is used if there is one (of several kinds: the first
    in the order of `sources.KINDS`), else a source is looked for (see `sources.find_source`).

    Args:
      config: `config.data` with the fields `name`, `source`, `data_dir` and `partial`.

    Raises:
      DataError: if there is no source, the source is damaged or has other than the published
        counts, the prepared arrays are damaged, or they were prepared from another source.
    """
    data_dir = Path(config.data_dir).expanduser() if config.data_dir else default_data_dir()
    if config.name == "fer2013":
        return _load_fer2013(data_dir.absolute(), config.source, config.partial)
    if config.source is not None:
        raise DataError(f"config.data.source is {config.source!r}, but {config.name} is drawn")
    folder = data_dir.absolute() / config.name / VERSIONS[config.name]
    if not folder.exists():
        _prepare(config.name, data_dir=str(data_dir.absolute()))
    return open_arrays(folder / "arrays")


def _load_fer2013(data_dir: Path, source: str | None, partial: bool) -> Dataset:
    from fer_jax.data import sources

    def folder(kind: str) -> Path:
        return data_dir / "fer2013" / kind / VERSIONS["fer2013"]

    suffix = sources.PARTIAL if partial else ""
    if source is None:
        for kind in sources.KINDS:
            if folder(kind + suffix).exists():
                return open_arrays(folder(kind + suffix) / "arrays")
        source = str(sources.find_source(data_dir))
    kind = sources.find_kind(source) + suffix
    if not folder(kind).exists():
        _prepare("fer2013", data_dir=str(data_dir), config=kind, source=source)
    dataset = open_arrays(folder(kind) / "arrays")
    check_source(dataset, source, folder(kind))
    return dataset


def check_source(dataset: Dataset, source: str | os.PathLike, folder: Path) -> None:
    """Raises a DataError if the dataset in `folder` was prepared from something else."""
    from fer_jax.data import sources

    sha256 = sources.source_sha256(source)
    if dataset.source_sha256 != sha256:
        raise DataError(
            f"{folder} was prepared from another source (SHA-256 {dataset.source_sha256}) than "
            f"{source} ({sha256}). Remove that folder, or set config.data.data_dir to another one"
        )


def _prepare(name: str, **kwargs: Any) -> None:
    """Runs the TFDS builder, which writes the arrays too; `fer_jax` has registered it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # only warnings and errors
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is not prepared in {kwargs['data_dir']}, and preparing it needs the packages "
            f"tensorflow and tensorflow_datasets ({error})"
        ) from error
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.builder(name, **kwargs).download_and_prepare(download_config=download_config)


class ArraysMixin:
    """Makes a `tfds.core.GeneratorBasedBuilder` write its splits as arrays too.

    A builder inherits from this first, sets `VERSION` from `VERSIONS` and gives `read_splits`.
    TFDS works in a temporary folder that it renames at the end, so a failure leaves nothing.
    """

    # TFDS downloads nothing here. Looking its checksums up imports importlib_resources, which TFDS
    # 4.9.10 declares only for Python < 3.9.
    url_infos = None

    def read_splits(self, dl_manager: Any) -> tuple[Mapping[str, Examples], str]:
        """Returns split -> (images, labels, ids), shaped as in `Split`, and a SHA-256."""
        raise NotImplementedError

    def _info(self) -> Any:
        import tensorflow_datasets as tfds

        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,  # pyright: ignore[reportArgumentType]
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of the arrays
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        splits, sha256 = self.read_splits(dl_manager)
        builder: Any = self
        kind = builder.builder_config.name if builder.builder_config else builder.name
        source = {"name": builder.name, "kind": kind, "sha256": sha256}
        write_arrays(Path(builder.data_dir) / "arrays", splits, source)
        return {split: self._generate_examples(*splits[split]) for split in SPLITS}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, ids: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i, image in enumerate(images):
            yield i, {"image": _encode_png(image), "label": int(labels[i]), "id": ids[i]}

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Prepares the dataset, or uses what another process has prepared in the meantime."""
        builder: Any = self
        try:
            super().download_and_prepare(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            if not builder.data_path.exists():
                raise
            builder.info.read_from_directory(builder.data_dir)


def _encode_png(image: np.ndarray) -> bytes:
    """Returns `[48, 48, 1]` uint8 as a PNG file, not compressed.

    By hand, because Pillow's overhead per file would dominate preparing, and TFDS's own encoder
    runs a TensorFlow graph. Format: RFC 2083.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter, 0: none
    rows[:, 1:] = image[..., 0]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8-bit grey, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
