"""Recognises FER2013 in the files it is published as, reads it, and checks every example.

Kinds of source:

* "jpeg": the JPEG mirror (Kaggle `msambare/fer2013`): `train/<class>/Training_<id>.jpg` and
  `test/<class>/{PublicTest,PrivateTest}_<id>.jpg`, possibly inside other folders.
* "csv": the competition's `fer2013.csv`, columns `emotion,pixels,Usage`.
* "icml_csv": the competition's `icml_face_data.csv`, columns `emotion, Usage, pixels`.

A source is recognised by what it holds, whatever its name, and whatever it is wrapped in (see
`fer_jax.data.files`). Whatever is wrong is a `DataError` that names the file and the row or member,
says what it is where that is known, and what to do.
"""

import collections
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.data import files, foreign, kaggle
from fer_jax.data.dataset import Dataset, Examples
from fer_jax.data.files import Member
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SIDE, SPLITS

log = logging.getLogger("fer_jax")

KINDS = ("jpeg", "csv", "icml_csv")
PARTIAL = "_partial"  # ends the name of a config that allows other counts than COUNTS

# Images per class, in the order of CLASSES (Goodfellow et al. 2013, the competition's data).
COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "valid": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
# MD5 of the CSV files as they were published, which torchvision's FER2013 checks too: nothing in a
# CSV tells a damaged pixel from a right one.
MD5 = {
    "csv": "f8428a1edbd21e88f42c73edd2a14f95",
    "icml_csv": "b114b9e04e6949e5fe8b6a98b3892b1d",
}
_SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "valid", "PrivateTest": "test"}
# The folders in which pictures of a usage may lie: the mirror has no folder for PublicTest.
_FOLDERS_OF_USAGE = {
    "Training": ("train",),
    "PublicTest": ("test", "valid", "val", "validation"),
    "PrivateTest": ("test",),
}
_TOP_FOLDERS = ("train", "test", "valid", "val", "validation")
_LABEL_OF_FOLDER = {
    name: label
    for label, name in enumerate(
        ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    )
}
_COLUMNS = ("emotion", "pixels", "usage")
_NUMBERS = {str(value).encode(): value for value in range(256)}
_USAGES = {usage.lower(): usage for usage in _SPLIT_OF_USAGE}
_PICTURE = re.compile(
    rf"(?P<root>(?:.*/)?)(?:{'|'.join(_TOP_FOLDERS)})/[^/]+/"
    rf"(?:{'|'.join(_SPLIT_OF_USAGE)})_[0-9]+\.jpe?g",
    re.IGNORECASE,
)
_PICTURE_NAME = re.compile(rf"({'|'.join(_SPLIT_OF_USAGE)})_([0-9]{{1,18}})\.jpe?g", re.IGNORECASE)
_MAX_JPEG_BYTES = 2**20  # a 48x48 JPEG has about 2 kB
_MAX_ROW_BYTES = 2**15  # a row has at most 9.3 kB
_MAX_WRAPPINGS = 4  # a CSV in a tar in a gzip in the competition's zip is in three
_MAX_CANDIDATES = 200  # members of an archive that are looked into


_PARTIAL_ADVICE = "If that is meant, allow it with --config.data.partial=True"


class _WrongCounts(DataError):
    """There are other numbers of images than the published ones."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A source that was recognised.

    Attributes:
      path: the file or folder on the disk that holds it.
      kind: one of `KINDS`.
      steps: the members to go through in it; of a CSV up to the CSV itself, of pictures up to the
        archive, and then what comes before `train/` and `test/`.
    """

    path: Path
    kind: str
    steps: tuple[str, ...]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the file; of a folder, that of its pictures' names, sizes and bytes."""
        if self.path.is_dir():
            digest = hashlib.sha256()
            for name, member in self.pictures():
                data = member.read(_MAX_JPEG_BYTES)
                digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
                digest.update(data)
            return digest.hexdigest()
        with files.open_file(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def pictures(self) -> Iterator[tuple[str, Member]]:
        """Yields (name below the root, member) of kind "jpeg"; checks that there is one root."""
        root = self.steps[-1]
        for member in _members_at(self.path, self.steps[:-1]):
            below = member.name.removeprefix(root)
            if member.name.startswith(root) and below.lower().startswith(_TOP_PREFIXES):
                yield below, member
            elif (match := _PICTURE.fullmatch(member.name)) is not None:
                raise DataError(
                    f"{self.path}: pictures lie below both {root!r} and {match['root']!r}; keep one"
                )


@dataclasses.dataclass(frozen=True)
class _Example:
    """One example: `number`, then `label`, order its split; `place` says where it was found."""

    split: str
    number: int
    id: bytes
    label: int
    pixels: bytes
    place: str


_TOP_PREFIXES = tuple(f"{top}/" for top in _TOP_FOLDERS)


def read_source(source: str | os.PathLike | Source, partial: bool) -> Mapping[str, Examples]:
    """Reads and checks a source.

    Args:
      source: what `recognise` returned, or a path for it.
      partial: whether to allow counts other than the published ones.

    Returns:
      split -> (images `[n, 48, 48, 1]` uint8, labels `[n]` uint8, ids `[n]` bytes), ordered by
      the number in the file's name (jpeg; where two have it, by label) or by row.

    Raises:
      DataError: naming file and row or member.
    """
    if not isinstance(source, Source):
        source = recognise(source)
    md5 = hashlib.md5(usedforsecurity=False)  # of a CSV
    examples = _jpeg_examples(source) if source.kind == "jpeg" else _csv_examples(source, md5)
    repair = kaggle.repair_of(source.path)
    try:
        splits = _stack(source.path, examples, partial)
    except _WrongCounts as error:
        raise DataError(f"{error}. {repair or _PARTIAL_ADVICE}") from error
    except DataError as error:
        raise DataError(f"{error}. {repair}") if repair else error from error.__cause__
    if source.kind != "jpeg" and not partial:
        _warn_unless_published(source, md5.hexdigest())
    return splits


def _warn_unless_published(source: Source, md5: str) -> None:
    """Warns of a CSV that may have been saved again by a program, or may be damaged."""
    if md5 != MD5[source.kind]:
        log.warning(
            "%s is not the file that was published (its MD5 is %s, not %s): a program saved it "
            "again, or pixels are damaged. If it was not saved again, download it anew",
            *(source.path, md5, MD5[source.kind]),
        )


def recognise(path: str | os.PathLike) -> Source:
    """Finds FER2013 in a file or folder; of several kinds, the first in the order of `KINDS`.

    Raises:
      DataError: saying what the path is instead, and what to do.
    """
    path = Path(path).expanduser()
    files.check_path(path)
    search = _Search()
    if path.is_dir():
        search.look_into(str(path), files.folder_members(path), ())
    else:
        with files.open_file(path) as file:
            search.look_at(str(path), file, (), given=True)
    if not search.found:
        raise DataError(search.reason(str(path)))
    kind, steps = min(search.found, key=lambda found: (KINDS.index(found[0]), len(found[1])))
    if path.is_dir() and (kind != "jpeg" or len(steps) > 1):  # a file in the folder
        path, steps = path / steps[0], steps[1:]
    return Source(path, kind, steps)


class _Search:
    """Looks for FER2013 in a file, folder or archive, and notes what else there is.

    Attributes:
      found: kind and steps (see `Source`) of each find.
      problems: what is wrong with those files that would have been a source, or look like one.
      names: of all members.
    """

    def __init__(self):
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.problems: list[str] = []
        self.names: list[str] = []

    def look_at(
        self, place: str, file: io.BufferedReader, steps: tuple[str, ...], *, given: bool = False
    ) -> None:
        """Looks at a file; `given` by its path, it is a problem if it is nothing known."""
        form = files.form_of(file)
        if form is None:
            head = file.peek(_MAX_ROW_BYTES)
            kind = _kind_of_columns(_columns(head))
            if kind:
                self.found.append((kind, steps))
            elif reason := foreign.describe_head(head):
                self.problems.append(f"{place} {reason}")
            elif given or place.lower().rstrip("'").endswith(".csv"):
                allowed = " or ".join(("emotion,pixels,Usage", "emotion, Usage, pixels"))
                line = head.splitlines()[0] if head.strip() else b""
                self.problems.append(
                    f"{place}: its first line is {_shown(line)}, which is no header of FER2013 "
                    f"({allowed}), nor is it an archive. {foreign.ADVICE}"
                )
        elif len(steps) == _MAX_WRAPPINGS:
            self.problems.append(f"{place} is an archive in too many others; unpack it")
        else:
            only = form == "tar"  # looking on means unpacking it all
            self.look_into(place, files.members(place, file, form), steps, stop_early=only)

    def look_into(
        self, place: str, members: Iterable[Member], steps: tuple[str, ...], stop_early=False
    ) -> None:
        """Looks into a folder or an archive; what is wrong in it does not hide what is good."""
        candidates, before = 0, len(self.found)
        root = None
        try:
            for member in members:
                match = _PICTURE.fullmatch(member.name)
                if match is not None:
                    root = match["root"]
                    break  # no other kind comes before it
                if candidates < _MAX_CANDIDATES and not foreign.is_picture(member.name):
                    candidates += 1
                    self._look_at_member(member, steps)
                if member.name:
                    self.names.append(member.name)
                if stop_early and len(self.found) > before:
                    break
        except DataError as error:
            self.problems.append(str(error))
        if root is not None:
            self.found.append(("jpeg", (*steps, root)))

    def _look_at_member(self, member: Member, steps: tuple[str, ...]) -> None:
        try:
            with member.open() as file:
                self.look_at(member.place, file, (*steps, member.name))
        except DataError as error:
            self.problems.append(str(error))

    def reason(self, place: str) -> str:
        """Says in a line why nothing was found in a place."""
        if known := foreign.describe_names(self.names):
            return f"{place} {known}"
        if self.problems:
            more = f"; and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
            return "; ".join(self.problems[:3]) + more
        shown = ", ".join(map(repr, self.names[:3])) or "nothing"
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return f"{place} holds no FER2013, but {shown}{more}. {foreign.ADVICE}"


def _members_at(path: Path, steps: Sequence[str]) -> Iterator[Member]:
    """Yields the members of the folder or archive that the steps lead to."""
    if path.is_dir():
        yield from files.folder_members(path)
        return
    with files.open_file(path) as file:
        yield from _members_in(str(path), file, steps)


def _members_in(place: str, file: io.BufferedReader, steps: Sequence[str]) -> Iterator[Member]:
    form = files.form_of(file)
    if form is None:
        raise DataError(f"{place} has changed while it was read")
    for member in files.members(place, file, form):
        if not steps:
            yield member
        elif member.name == steps[0]:
            with member.open() as inner:
                yield from _members_in(member.place, inner, steps[1:])


def check_source(dataset: Dataset, source: Source, folder: Path) -> None:
    """Raises a DataError if the data set in `folder` was prepared from something else."""
    if dataset.source_sha256 != source.sha256:
        raise DataError(
            f"{folder} was prepared from another source (SHA-256 {dataset.source_sha256}) than "
            f"{source.path} ({source.sha256}). Remove that folder, or set config.data.data_dir to "
            "another one"
        )


# JPEG mirror


def _jpeg_examples(source: Source) -> Iterator[_Example]:
    for name, member in source.pictures():
        parts = name.split("/")
        match = _PICTURE_NAME.fullmatch(parts[-1])
        if len(parts) != 3 or match is None:
            raise DataError(
                f"{member.place} is not <train|test>/<class>/<usage>_<number>.jpg; move it away"
            )
        folder, label = parts[0].lower(), _LABEL_OF_FOLDER.get(parts[1].lower())
        if label is None:
            allowed = ", ".join(_LABEL_OF_FOLDER)
            raise DataError(f"{member.place}: unknown class {parts[1]!r}, allowed are {allowed}")
        usage, number = _USAGES[match[1].lower()], int(match[2])
        if folder not in _FOLDERS_OF_USAGE[usage]:
            raise DataError(f"{member.place}: {usage} belongs into {_FOLDERS_OF_USAGE[usage][0]}/")
        yield _Example(
            split=_SPLIT_OF_USAGE[usage],
            number=number,
            id=f"{usage}_{match[2]}".encode(),
            label=label,
            pixels=_decode_jpeg(member.place, member.read(_MAX_JPEG_BYTES)),
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


def _columns(head: bytes) -> tuple[str, ...]:
    """Returns the names in a header, in lower case; what is no header gives any names."""
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r")
    if not line or len(line) > 1000:
        return ()
    try:
        fields = next(csv.reader([line.decode("latin-1")], skipinitialspace=True), [])
    except csv.Error:
        return ()
    return tuple(field.strip().lower() for field in fields)


def _is_index(column: str) -> bool:
    return column in ("", "unnamed: 0")  # the number of a row, as R and pandas write it


def _kind_of_columns(columns: Sequence[str]) -> str | None:
    named = [column for column in columns if not _is_index(column)]
    if sorted(named) != sorted(_COLUMNS) or len(columns) > len(named) + 1:
        return None
    return "icml_csv" if named == ["emotion", "usage", "pixels"] else "csv"


def _csv_examples(source: Source, md5: Any) -> Iterator[_Example]:
    """Yields the rows of a CSV, and adds its bytes to `md5`."""
    *steps, name = source.steps or ("",)
    if not source.steps:
        with files.open_file(source.path) as file:
            yield from _table_examples(str(source.path), file, md5)
        return
    tables = 0
    for member in _members_at(source.path, steps):  # to the end, where the checksums are
        if member.name == name:
            tables += 1
            if tables > 1:
                raise DataError(f"{member.place} is there twice")
            with member.open() as file:
                yield from _table_examples(member.place, file, md5)


def _table_examples(place: str, file: io.BufferedReader, md5: Any) -> Iterator[_Example]:
    header = _read_row(f"{place}, line 1", file)
    md5.update(header)
    columns = _columns(header)
    blank = None  # place and line of a row that is allowed at the end only
    for row in itertools.count():
        row_place = f"{place}, row {row} (line {row + 2})"
        line = _read_row(row_place, file)
        md5.update(line)
        if not line:
            return
        if not line.strip(b" \r\n"):
            blank = blank or (row_place, line)
            continue
        usage, label, pixels = _parse_row(*(blank or (row_place, line)), columns)
        yield _Example(
            split=_SPLIT_OF_USAGE[usage],
            number=row,
            id=f"{usage}_{row:06d}".encode(),
            label=label,
            pixels=pixels,
            place=f"row {row} (line {row + 2})",
        )


def _read_row(place: str, file: io.BufferedReader) -> bytes:
    line = file.readline(_MAX_ROW_BYTES + 1)
    if len(line) > _MAX_ROW_BYTES:
        raise DataError(
            f"{place}: over {_MAX_ROW_BYTES} bytes without a line's end; a row of FER2013 has less "
            "than 9,300. It is damaged: copy or download it again"
        )
    return line


def _parse_row(place: str, line: bytes, columns: Sequence[str]) -> tuple[str, int, bytes]:
    """Returns usage, label and the 2304 pixels of a row; strict, so that nothing is guessed."""
    fields = _fields(place, line.removesuffix(b"\n").removesuffix(b"\r"))
    if len(fields) != len(columns):
        raise DataError(f"{place}: {len(fields)} fields, not {len(columns)}: {_shown(line)}")
    row = dict(zip(columns, fields, strict=True))
    usage = row["usage"].decode("latin-1")
    if usage not in _SPLIT_OF_USAGE:
        allowed = ", ".join(_SPLIT_OF_USAGE)
        raise DataError(f"{place}: Usage is {_shown(row['usage'])}, allowed are {allowed}")
    label = _NUMBERS.get(row["emotion"], -1)
    if not 0 <= label < len(CLASSES):
        raise DataError(f"{place}: emotion is {_shown(row['emotion'])}, allowed are 0 to 6")
    return usage, label, _parse_pixels(place, row["pixels"])


def _fields(place: str, line: bytes) -> list[bytes]:
    if b'"' not in line:  # the usual case
        return [field.strip(b" ") for field in line.split(b",")]
    try:
        text = line.decode("latin-1")
        fields = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(f"{place}: a wrong quotation mark ({error}): {_shown(line)}") from error
    return [field.strip(" ").encode("latin-1") for field in fields]


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
        raise _WrongCounts(
            f"{path}: {split} holds {sum(counts)} images, by class {counts}; published are "
            f"{sum(COUNTS[split])}, {COUNTS[split]}"
        )
