"""Reads FER2013 from the files it is published as, and checks every example.

Kinds of source:

* "jpeg": the JPEG mirror (Kaggle `msambare/fer2013`), as `archive.zip` or as a folder:
  `train/<class>/Training_<id>.jpg` and `test/<class>/{PublicTest,PrivateTest}_<id>.jpg`,
  possibly inside one more folder.
* "csv": the competition's `fer2013.tar.gz` or `fer2013.csv`, columns `emotion,pixels,Usage`.
* "icml_csv": `icml_face_data.csv`, columns `emotion, Usage, pixels`.

Whatever is wrong is a `DataError` that names the file and the row or member.
"""

import collections
import dataclasses
import gzip
import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from fer_jax.data.dataset import Dataset, Examples
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SIDE, SPLITS

KINDS = ("jpeg", "csv", "icml_csv")
PARTIAL = "_partial"  # ends the name of a config that allows other counts than COUNTS
KAGGLE = "msambare/fer2013"  # the JPEG mirror, needs no account

# Images per class, in the order of CLASSES (Goodfellow et al. 2013, the competition's data).
COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "valid": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
_SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "valid", "PrivateTest": "test"}
_FOLDER_OF_USAGE = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
_LABEL_OF_FOLDER = {
    name: label
    for label, name in enumerate(
        ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    )
}
_KIND_OF_COLUMNS: dict[tuple[str, ...], str] = {
    ("emotion", "pixels", "Usage"): "csv",
    ("emotion", "Usage", "pixels"): "icml_csv",
}
_NUMBERS = {str(value).encode(): value for value in range(256)}
_MANUAL_NAMES = {  # looked for in TFDS's manual folder, in this order
    "jpeg": ("archive.zip", "fer2013.zip", "fer2013"),
    "csv": ("fer2013.csv", "fer2013.tar.gz"),
    "icml_csv": ("icml_face_data.csv",),
}
_JPEG_NAME = re.compile(r"(Training|PublicTest|PrivateTest)_([0-9]{1,18})\.jpg")
_MAX_JPEG_BYTES = 2**20  # a 48x48 JPEG has about 2 kB
_MAX_TAR_BYTES = 2**30  # the published CSV has about 300 MB


@dataclasses.dataclass(frozen=True)
class _Example:
    """One example: `number`, then `label`, order its split; `place` says where it was found."""

    split: str
    number: int
    id: bytes
    label: int
    pixels: bytes
    place: str


def read_source(path: str | os.PathLike, partial: bool) -> tuple[Mapping[str, Examples], str]:
    """Reads and checks a source.

    Args:
      path: of any kind of source.
      partial: whether to allow counts other than the published ones.

    Returns:
      split -> (images `[n, 48, 48, 1]` uint8, labels `[n]` uint8, ids `[n]` bytes), ordered by
      the number in the file's name (jpeg; where two have it, by label) or by row; and the
      source's SHA-256 (see `source_sha256`).

    Raises:
      DataError: naming file and row or member.
    """
    path = Path(path).expanduser()
    kind = find_kind(path)
    if kind == "jpeg":
        members = list(_folder_members(path) if path.is_dir() else _zip_members(path))
        examples = _jpeg_examples(path, members)
        sha256 = _members_sha256(members) if path.is_dir() else source_sha256(path)
    else:
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        examples = _csv_examples(path, data if path.suffix == ".csv" else _untar(path, data))
    return _stack(path, examples, partial), sha256


def find_kind(path: str | os.PathLike) -> str:
    """Returns the kind of source a path is, one of `KINDS`.

    Raises:
      DataError: if there is nothing, or the name or the CSV's header is none that is known.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir() or path.suffix == ".zip":
        return "jpeg"
    if path.name.endswith((".tar.gz", ".tgz")):
        return "csv"
    if path.suffix == ".csv":
        with path.open("rb") as file:
            return _KIND_OF_COLUMNS[_read_columns(path, file.readline(1000))]
    raise DataError(f"{path}: a source is a folder or ends in .zip, .tar.gz, .tgz or .csv")


def source_sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file; of a folder, that of its images' names, sizes and bytes."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _members_sha256(_folder_members(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_source(dataset: Dataset, source: str | os.PathLike, folder: Path) -> None:
    """Raises a DataError if the data set in `folder` was prepared from something else."""
    sha256 = source_sha256(source)
    if dataset.source_sha256 != sha256:
        raise DataError(
            f"{folder} was prepared from another source (SHA-256 {dataset.source_sha256}) than "
            f"{source} ({sha256}). Remove that folder, or set config.data.data_dir to another one"
        )


def find_source(data_dir: Path, kind: str | None = None) -> Path:
    """Finds a source in TFDS's manual folder, else fetches the JPEG mirror with kagglehub.

    Args:
      data_dir: TFDS's; the manual folder is `downloads/manual` in it.
      kind: one of `KINDS`, or None for the first there is, in that order.

    Raises:
      DataError: saying how to get the data, if there is none.
    """
    manual = data_dir / "downloads" / "manual"
    kinds = KINDS if kind is None else (kind,)
    for name in (name for k in kinds for name in _MANUAL_NAMES[k]):
        if (manual / name).exists():
            return manual / name
    reason = f"kagglehub has no source of kind {kind}"
    if "jpeg" in kinds:
        try:
            import kagglehub

            return Path(kagglehub.dataset_download(KAGGLE))
        except Exception as error:  # whatever the network, the site or the disk came up with
            reason = f"{type(error).__name__}: {str(error)[:200]}"
    names = ", ".join(name for k in kinds for name in _MANUAL_NAMES[k])
    raise DataError(
        "FER2013 was not found. Three ways to get it:\n"
        "  1. --config.data.source=PATH, to archive.zip or its extracted folder (kaggle.com/"
        f"datasets/{KAGGLE}), fer2013.tar.gz, fer2013.csv or icml_face_data.csv;\n"
        f"  2. put one of these into {manual}, named {names};\n"
        f"  3. go online: it is then fetched with kagglehub ({KAGGLE}, no account needed). "
        f"It said: {reason}\n"
        "With no data at all, this runs: uv run launch.py --config=experiments/quickstart.py"
    )


# JPEG mirror


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name below the root, content) of a folder's images, in the order of names."""
    candidates = [path, *sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")]
    roots = [p for p in candidates if (p / "train").is_dir() or (p / "test").is_dir()]
    if len(roots) != 1:
        raise _no_root(path, [str(p) for p in roots])
    files = {}
    for top in (roots[0] / "train", roots[0] / "test"):
        for entry in top.iterdir() if top.is_dir() else ():
            for file in entry.iterdir() if entry.is_dir() else (entry,):
                files[file.relative_to(roots[0]).as_posix()] = file
    for name in sorted(filter(_is_visible, files)):
        if not files[name].is_file():
            raise DataError(f"{path}: {name!r} is not a file")
        _check_size(path, name, files[name].stat().st_size)
        yield name, files[name].read_bytes()


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name below the root, content) of an archive's images, in the order of names."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {}
            for info in archive.infolist():
                if info.filename in members:
                    raise DataError(f"{path}: {info.filename!r} is there twice")
                _check_name(path, info.filename)
                members[info.filename] = info
            names = [name for name in members if not name.endswith("/") and _is_visible(name)]
            root = _zip_root(path, names)
            for name in sorted(names):
                below = name.removeprefix(root)
                if name.startswith(root) and below.startswith(("train/", "test/")):
                    yield below, _read_member(path, archive, members[name])
    except DataError:
        raise
    except Exception as error:  # zipfile raises many things on damaged files
        raise DataError(f"{path}: not a whole zip file ({error!r})") from error


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1:
        raise DataError(f"{path}: {info.filename!r} is encrypted")
    _check_size(path, info.filename, info.file_size)
    try:
        return archive.read(info)
    except Exception as error:  # see _zip_members
        raise DataError(f"{path}: {info.filename!r} cannot be read ({error!r})") from error


def _zip_root(path: Path, names: Iterable[str]) -> str:
    """Returns what comes before `train/` and `test/`: nothing, or one folder."""
    roots = set()
    for parts in (name.split("/") for name in names):
        for depth in (0, 1):
            if len(parts) > depth + 1 and parts[depth] in ("train", "test"):
                roots.add("/".join([*parts[:depth], ""]))
                break
    if len(roots) != 1:
        raise _no_root(path, sorted(roots))
    return roots.pop()


def _no_root(path: Path, roots: list[str]) -> DataError:
    found = f"they are in {', '.join(map(repr, roots))}" if roots else "there are none"
    return DataError(
        f"{path}: it must hold folders train and test, or one folder with them; {found}"
    )


def _is_visible(name: str) -> bool:
    """Returns whether a file is not one that an operating system leaves behind."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _check_name(path: Path, name: str) -> None:
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise DataError(f"{path}: member {name!r} leads out of the archive")


def _check_size(path: Path, name: str, size: int) -> None:
    if not 0 < size <= _MAX_JPEG_BYTES:
        raise DataError(f"{path}: {name!r} has {size} bytes, allowed are 1 to {_MAX_JPEG_BYTES}")


def _members_sha256(members: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, data in members:
        digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def _jpeg_examples(path: Path, members: Iterable[tuple[str, bytes]]) -> Iterator[_Example]:
    for name, data in members:
        place = f"{path}: {name!r}"
        parts = name.split("/")
        match = _JPEG_NAME.fullmatch(parts[-1])
        if len(parts) != 3 or match is None:
            raise DataError(f"{place} is not <train|test>/<class>/<usage>_<number>.jpg")
        if parts[1] not in _LABEL_OF_FOLDER:
            allowed = ", ".join(_LABEL_OF_FOLDER)
            raise DataError(f"{place}: unknown class {parts[1]!r}, allowed are {allowed}")
        usage, number = match[1], int(match[2])
        if _FOLDER_OF_USAGE[usage] != parts[0]:
            raise DataError(f"{place}: {usage} belongs into {_FOLDER_OF_USAGE[usage]}/")
        yield _Example(
            split=_SPLIT_OF_USAGE[usage],
            number=number,
            id=parts[-1].removesuffix(".jpg").encode(),
            label=_LABEL_OF_FOLDER[parts[1]],
            pixels=_decode_jpeg(place, data),
            place=name,
        )


def _decode_jpeg(place: str, data: bytes) -> bytes:
    """Returns the 2304 grey levels of a JPEG file, row by row."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        size, mode = image.size, image.mode  # of the header: nothing is decoded yet
        pixels = image.tobytes() if (size, mode) == ((SIDE, SIDE), "L") else b""
    except Exception as error:  # Pillow raises many things on damaged files
        raise DataError(f"{place} cannot be decoded as JPEG ({error!r})") from error
    if size != (SIDE, SIDE):
        raise DataError(f"{place} has {size[0]}x{size[1]} pixels, not {SIDE}x{SIDE}")
    if mode != "L":
        raise DataError(f"{place} has colour mode {mode}, not 8-bit grey")
    return pixels


# CSV


def _untar(path: Path, data: bytes) -> bytes:
    """Returns the `fer2013.csv` of the competition's archive."""
    try:
        # Unpacked whole, which checks the sum at the end: tarfile alone stops before it.
        plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_TAR_BYTES)
        if len(plain) == _MAX_TAR_BYTES:
            raise DataError(f"{path}: it unpacks to {_MAX_TAR_BYTES} bytes or more")
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            members = archive.getmembers()
            for member in members:
                _check_name(path, member.name)
            tables = [m for m in members if PurePosixPath(m.name).name == "fer2013.csv"]
            if len(tables) != 1:
                raise DataError(f"{path}: it must hold one fer2013.csv, but holds {len(tables)}")
            if not tables[0].isfile():
                raise DataError(f"{path}: {tables[0].name!r} is not a file")
            file = archive.extractfile(tables[0])
            return file.read() if file else b""
    except DataError:
        raise
    except Exception as error:  # tarfile, gzip and zlib raise many things on damaged files
        raise DataError(f"{path}: not a whole tar.gz file ({error!r})") from error


def _read_columns(path: Path, line: bytes) -> tuple[str, ...]:
    names = line.rstrip(b"\r\n").split(b",")
    columns = tuple(name.strip(b" ").decode("latin-1") for name in names)
    if columns not in _KIND_OF_COLUMNS:
        allowed = " or ".join(",".join(names) for names in _KIND_OF_COLUMNS)
        raise DataError(f"{path}: the header is {_shown(line)}, it must be {allowed}")
    return columns


def _csv_examples(path: Path, data: bytes) -> Iterator[_Example]:
    lines = io.BytesIO(data)
    columns = _read_columns(path, lines.readline(1000))
    for row, line in enumerate(lines):
        place = f"row {row} (line {row + 2})"
        usage, label, pixels = _parse_row(f"{path}, {place}", line, columns)
        yield _Example(
            split=_SPLIT_OF_USAGE[usage],
            number=row,
            id=f"{usage}_{row:06d}".encode(),
            label=label,
            pixels=pixels,
            place=place,
        )


def _parse_row(place: str, line: bytes, columns: tuple[str, ...]) -> tuple[str, int, bytes]:
    """Returns usage, label and the 2304 pixels of a row; strict, so that nothing is guessed."""
    fields = [
        field.strip(b" ") for field in line.removesuffix(b"\n").removesuffix(b"\r").split(b",")
    ]
    if len(fields) != len(columns):
        raise DataError(f"{place}: {len(fields)} fields, not {len(columns)}: {_shown(line)}")
    row = dict(zip(columns, fields, strict=True))
    usage = row["Usage"].decode("latin-1")
    if usage not in _SPLIT_OF_USAGE:
        allowed = ", ".join(_SPLIT_OF_USAGE)
        raise DataError(f"{place}: Usage is {_shown(row['Usage'])}, allowed are {allowed}")
    label = _NUMBERS.get(row["emotion"], -1)
    if not 0 <= label < len(CLASSES):
        raise DataError(f"{place}: emotion is {_shown(row['emotion'])}, allowed are 0 to 6")
    return usage, label, _parse_pixels(place, row["pixels"])


def _parse_pixels(place: str, text: bytes) -> bytes:
    """Returns 2304 pixels, each as `str` writes it, with one blank between."""
    if not text.translate(None, b"0123456789 "):  # the usual case, by NumPy
        values = np.fromstring(text, np.int64, sep=" ")
        blanks_and_digits = 2 * values.size - 1 + sum(np.count_nonzero(values > n) for n in (9, 99))
        if (
            values.size == SIDE * SIDE
            and values.max() <= 255
            and len(text) == blanks_and_digits  # so no leading zero, no second blank
        ):
            return values.astype(np.uint8).tobytes()
    tokens = text.split(b" ")
    if len(tokens) != SIDE * SIDE:
        raise DataError(f"{place}: {len(tokens)} pixels, not {SIDE * SIDE}")
    try:
        return bytes(map(_NUMBERS.__getitem__, tokens))
    except KeyError as error:
        token = _shown(error.args[0])
        raise DataError(f"{place}: a pixel is {token}, allowed are 0 to 255") from error


def _shown(data: bytes) -> str:
    """Returns bytes as they may stand in a message."""
    return repr(data[:40].decode("latin-1")) + ("..." if len(data) > 40 else "")


# All kinds


def _stack(path: Path, examples: Iterable[_Example], partial: bool) -> dict[str, Examples]:
    """Sorts examples into splits and checks their numbers and counts."""
    by_split: dict[str, dict[tuple[int, int], _Example]] = {split: {} for split in SPLITS}
    for example in examples:
        # The label too: two numbers of the published mirror stand in two classes each.
        key = (example.number, example.label)
        other = by_split[example.split].setdefault(key, example)
        if other is not example:
            raise DataError(f"{path}: {example.place!r} and {other.place!r} have the same number")
    splits = {}
    for split, numbered in by_split.items():
        if not numbered:
            raise DataError(f"{path}: it holds no example of the split {split}")
        ordered = [numbered[key] for key in sorted(numbered)]
        _check_counts(path, split, ordered, partial)
        images = np.frombuffer(b"".join(e.pixels for e in ordered), np.uint8)
        splits[split] = (
            images.reshape(-1, SIDE, SIDE, 1),
            np.array([e.label for e in ordered], np.uint8),
            np.array([e.id for e in ordered], np.bytes_),
        )
    return splits


def _check_counts(path: Path, split: str, examples: list[_Example], partial: bool) -> None:
    found = collections.Counter(example.label for example in examples)
    counts = tuple(found[label] for label in range(len(CLASSES)))
    if counts != COUNTS[split] and not partial:
        raise DataError(
            f"{path}: {split} holds {sum(counts)} images, by class {counts}; published are "
            f"{sum(COUNTS[split])}, {COUNTS[split]}. "
            "If that is meant, allow it with --config.data.partial=True"
        )
