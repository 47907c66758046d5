"""Anybody's predictions for FER2013's held-out images, from CSV or Parquet, checked.

A row is an image: its name in the JPEG mirror (`PrivateTest_10131363`, with or without folders and
`.jpg`) or its row in the competition's CSV, counted from 0 through all of it; and seven
probabilities or logits, or one class. Columns are known by their names; without a header, or where
seven have other names, they are taken in the order of the labels. Whatever is wrong is named.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_jax.data.labels_fer2013 import USAGES, Labels
from fer_jax.errors import DataError, ExtraError
from fer_jax.labels import CLASS_OF_NAME, CLASSES, NUM_CLASSES

_IMAGE = re.compile(
    r"(?:.*[/\\])?(Training|PublicTest|PrivateTest)_(\d{1,18})(?:\.\w+)?", re.IGNORECASE
)
_USAGES = {usage.lower(): usage for usage in ("Training", *USAGES.values())}
_ROW = re.compile(r"(\d{1,9})(?:\.0+)?")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf(inity)?", re.IGNORECASE)
# Names of columns, in lower case with underscores; earlier ones go first.
_ROWS = ("row", "id", "image_id", "image", "index", "idx", "", "unnamed_0", "index_level_0")
_PREDICTED = (
    *("prediction", "predicted", "pred", "predictions", "preds", "y_pred", "predicted_class"),
    *("predicted_label", "predicted_emotion", "pred_class", "pred_label"),
)
_CLASS = ("class", "label", "emotion", "expression")
_WORDS = "probability|probabilities|prob|probs|proba|p|score|logits|logit|softmax|output|class|pred"
_VALUE = re.compile(
    rf"(?:(?:{_WORDS})_*)?({'|'.join(CLASS_OF_NAME)}|[0-{NUM_CLASSES - 1}])(?:_+(?:{_WORDS}))?"
)
_ROUNDING = 0.035  # that seven probabilities of two decimals each can add up to
_SHOWN = 3  # examples of each problem


class Table(NamedTuple):
    """A file as text.

    Attributes:
      path: the file.
      names: of the columns, in lower case with underscores; all empty without a header.
      rows: each of as many cells as there are columns.
      places: of each row, such as `line 2`.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    places: list[str]


class Columns(NamedTuple):
    """What a table's columns are.

    Attributes:
      image: number of the column that names images.
      by_row: whether it does so by rows of the competition's CSV.
      values: numbers of the seven columns with values, in the order of the labels; or of the one
        with classes.
      named: whether names of columns say which class is which; else it is their order.
    """

    image: int
    by_row: bool
    values: list[int]
    named: bool


class Predictions(NamedTuple):
    """Predictions for images of one split, in its order.

    Attributes:
      index: `[n]` int64, ascending, which of the split's images.
      classes: `[n]` int64, 0 to 6; of equally likely ones the first.
      log_probs: `[n, 7]` float64, natural logarithms; None where there are only classes.
    """

    index: np.ndarray
    classes: np.ndarray
    log_probs: np.ndarray | None


class Found(NamedTuple):
    """What a file holds.

    Attributes:
      kind: `probabilities`, `logits` or `classes`.
      splits: "valid" or "test", or both -> predictions.
      notes: sentences on how the file was understood.
    """

    kind: str
    splits: dict[str, Predictions]
    notes: list[str]


# Tables


def read_table(path: Path) -> Table:
    """Reads a file.

    Raises:
      DataError: if it cannot be read or is no table.
      ExtraError: if it is Parquet and pyarrow is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    lines = _parquet(path) if data[:4] == b"PAR1" else _csv(path, data)
    header = bool(lines) and not _is_data(lines[0][1])
    names = [re.sub(r"[\W_]+", "_", n.lower()).strip("_") for n in lines[0][1]] if header else []
    lines = lines[header:]
    if not lines:
        raise DataError(f"{path} holds no row of predictions")
    width = len(names) or len(lines[0][1])
    for place, row in lines:
        if len(row) != width:
            raise DataError(f"{path}, {place}: {len(row)} fields, not {width}")
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{path}: the column {name!r} is there twice")
    return Table(path, names or [""] * width, [row for _, row in lines], [p for p, _ in lines])


def _is_data(row: Sequence[str]) -> bool:
    """Tells a row of values from a header; a header may hold the numbers of the classes."""
    cells = [cell.strip() for cell in row]
    if any(map(_IMAGE.fullmatch, cells)):
        return True
    numbers = [cell for cell in cells if _NUMBER.fullmatch(cell)]
    header = (list(map(str, range(NUM_CLASSES))), list(map(str, range(len(cells)))))
    return len(numbers) == len(cells) and cells[-NUM_CLASSES:] != header[0] and cells != header[1]


def _csv(path: Path, data: bytes) -> list[tuple[str, list[str]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is neither CSV in UTF-8 nor Parquet; save it as one of them")
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(f"line {reader.line_num}", row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _parquet(path: Path) -> list[tuple[str, list[str]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraError(
            f"{path} is Parquet, which takes pyarrow to read: pip install pyarrow, or save it as "
            "CSV"
        ) from error
    try:
        table = parquet.read_table(path)
        columns = [list(map(_text, column.to_pylist())) for column in table.columns]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    rows = enumerate(zip(*columns, strict=True), 1)
    return [("header", table.column_names), *((f"row {i}", list(row)) for i, row in rows)]


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# Columns


def find_columns(table: Table) -> Columns:
    """Finds the columns that matter.

    Raises:
      DataError: naming what is missing or stands twice, and the columns that are there.
    """
    image, by_row = _image_column(table)
    others = [c for c in range(len(table.names)) if c != image and not _names_image(table, c)]
    by_class: dict[int, list[int]] = {}
    for column in others:
        if (label := _label_of_column(table.names[column])) is not None:
            by_class.setdefault(label, []).append(column)
    for label, columns in by_class.items():
        if len(columns) > 1:
            both = " and ".join(repr(table.names[c]) for c in columns)
            raise DataError(f"{table.path}: the columns {both} are both {CLASSES[label]}")
    if len(by_class) == NUM_CLASSES:
        return Columns(image, by_row, [by_class[i][0] for i in range(NUM_CLASSES)], named=True)
    for names in (_PREDICTED, _CLASS):
        columns = [c for c in others if table.names[c] in names]
        if len(columns) > 1:
            both = " or ".join(repr(table.names[c]) for c in columns)
            raise DataError(
                f"{table.path}: which column holds the predictions, {both}? Call it prediction"
            )
        if columns:
            return Columns(image, by_row, columns, named=False)
    named = [label for label, (c,) in by_class.items() if not table.names[c][-1:].isdigit()]
    if named:
        lacking = ", ".join(name for i, name in enumerate(CLASSES) if i not in by_class)
        raise DataError(f"{table.path}: there is no column for {lacking}")
    if len(others) in (1, NUM_CLASSES):
        return Columns(image, by_row, others, named=False)
    there = ", ".join(name or "(no name)" for name in table.names)
    raise DataError(
        f"{table.path}: no predictions among its columns {there}. It takes seven of probabilities "
        f"or logits, named by class ({', '.join(CLASSES)}, or 0 to 6), or one named prediction"
    )


def _image_column(table: Table) -> tuple[int, bool]:
    for column, cell in enumerate(table.rows[0]):
        if _IMAGE.fullmatch(cell.strip()):
            return column, False
    for name in _ROWS:
        if name in table.names and _ROW.fullmatch(table.rows[0][table.names.index(name)].strip()):
            return table.names.index(name), True
    raise DataError(
        f"{table.path}: no column names images, like PrivateTest_10131363 (the JPEG mirror's "
        "files), or, called row, the rows of the competition's CSV"
    )


def _names_image(table: Table, column: int) -> bool:
    with_header = any(table.names)
    return bool(_IMAGE.fullmatch(table.rows[0][column].strip())) or (
        with_header and table.names[column] in _ROWS
    )


def _label_of_column(name: str) -> int | None:
    match = _VALUE.fullmatch(name)
    return _label_of(match[1]) if match else None


def _label_of(text: str) -> int | None:
    """Returns the label that a class's number or name is, in any usual spelling."""
    text = text.strip().lower()
    if match := _ROW.fullmatch(text):
        return int(match[1]) if int(match[1]) < NUM_CLASSES else None
    name = CLASS_OF_NAME.get(text)
    return None if name is None else CLASSES.index(name)


# Predictions


class _Problems:
    """What is wrong with a file, each kind with how often and the first examples."""

    def __init__(self):
        self.lines: list[str] = []

    def add(self, what: str, examples: Sequence[str]) -> None:
        if examples:
            more = ", ..." if len(examples) > _SHOWN else ""
            self.lines.append(f"{what} ({len(examples):,}): {', '.join(examples[:_SHOWN])}{more}")

    def check(self, path: Path) -> None:
        if len(self.lines) == 1:
            raise DataError(f"{path}: {self.lines[0]}")
        if self.lines:
            raise DataError("\n  ".join([f"{path} cannot be scored:", *self.lines]))


def read(
    table: Table, columns: Columns, labels: Mapping[str, Labels], logits: bool, partial: bool
) -> Found:
    """Reads the predictions of a table.

    Args:
      table: what :func:`read_table` read.
      columns: what :func:`find_columns` found.
      labels: "valid" and "test", with the names or rows that the table names images by.
      logits: take values for logits whatever they look like.
      partial: allow that images of a split are missing.

    Raises:
      DataError: naming all images that are unknown, double or missing, and all values that cannot
        be what they should be, the first of each.
    """
    problems = _Problems()
    places, training = _find_images(table, columns, labels, problems)
    if not places:
        problems.lines.append(_nothing(columns.by_row, training, labels))
        problems.check(table.path)
    for split, of in labels.items():
        there = {i for where, i in places.values() if where == split}
        missing = [name for i, name in enumerate(of.ids) if i not in there]
        if there and missing and not partial:
            problems.add(f"images of {USAGES[split]} missing", missing)
            problems.lines[-1] += "; --partial scores the others, and says so"
    notes = []
    if training:
        notes.append(f"{training:,} rows are of Training, which is not scored")
    if len(columns.values) == 1:
        kind, log_probs = "classes", None
        classes = _classes(table, columns, list(places), problems)
    else:
        values = _values(table, columns, list(places), problems)
        problems.check(table.path)
        kind = _kind(table, values, list(places), logits, problems, notes)
        classes = values.argmax(axis=1)
        ties = int(((values == values.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
        if ties:
            notes.append(f"{ties:,} rows have several largest values: the first of them counts")
        if not columns.named:
            notes.append(f"columns are taken in the labels' order: {', '.join(CLASSES)}")
        log_probs = _log_probabilities(values, kind)
    problems.check(table.path)
    where = np.array([list(labels).index(split) for split, _ in places.values()])
    index = np.array([i for _, i in places.values()])
    splits = {}
    for k, split in enumerate(labels):
        rows = np.flatnonzero(where == k)
        rows = rows[np.argsort(index[rows])]
        if len(rows):
            logs = None if log_probs is None else log_probs[rows]
            splits[split] = Predictions(index[rows], classes[rows], logs)
    return Found(kind, splits, notes)


def _find_images(
    table: Table, columns: Columns, labels: Mapping[str, Labels], problems: _Problems
) -> tuple[dict[int, tuple[str, int]], int]:
    """Returns row of the table -> (split, which of its images), and how many are of Training."""
    known = {name: (split, i) for split, of in labels.items() for i, name in enumerate(of.ids)}
    places: dict[int, tuple[str, int]] = {}
    seen: dict[tuple[str, int], int] = {}
    last = max(int(of.ids[-1]) for of in labels.values()) if columns.by_row else 0
    unknown, double, training = [], [], 0
    for row, cells in enumerate(table.rows):
        cell = cells[columns.image].strip()
        name, is_training = _row_of(cell, last) if columns.by_row else _name_of(cell)
        if name in known:
            first = seen.setdefault(known[name], row)
            places[row] = known[name]
            if first != row:
                double.append(f"{name} ({table.places[first]} and {table.places[row]})")
        elif is_training:
            training += 1
        else:
            unknown.append(f"{cell!r} ({table.places[row]})")
    problems.add("unknown rows" if columns.by_row else "unknown images", unknown)
    problems.add("images that stand twice", double)
    return places, training


def _name_of(cell: str) -> tuple[str, bool]:
    match = _IMAGE.fullmatch(cell)
    if not match:
        return "", False
    usage = _USAGES[match[1].lower()]
    return f"{usage}_{int(match[2])}", usage == "Training"


def _row_of(cell: str, last: int) -> tuple[str, bool]:
    match = _ROW.fullmatch(cell)
    return (str(int(match[1])), int(match[1]) < last) if match else ("", False)


def _nothing(by_row: bool, training: int, labels: Mapping[str, Labels]) -> str:
    if not (by_row and training):
        return "no image of PublicTest or PrivateTest is in it"
    ranges = ", ".join(f"{USAGES[s]} {of.ids[0]} to {of.ids[-1]}" for s, of in labels.items())
    return (
        "all its rows are of Training: rows are counted from 0 through the whole CSV, in which "
        f"{ranges} are scored"
    )


def _classes(
    table: Table, columns: Columns, rows: Sequence[int], problems: _Problems
) -> np.ndarray:
    (column,) = columns.values
    found, wrong = [], []
    for row in rows:
        cell = table.rows[row][column]
        label = _label_of(cell)
        found.append(label or 0)
        if label is None:
            wrong.append(f"{cell!r} ({table.places[row]})")
    problems.add(
        f"no class, which is {', '.join(CLASSES)} or 0 to {NUM_CLASSES - 1} in this order", wrong
    )
    return np.array(found, np.int64)


def _values(table: Table, columns: Columns, rows: Sequence[int], problems: _Problems) -> np.ndarray:
    found = np.empty((len(rows), NUM_CLASSES))
    wrong = []
    for i, row in enumerate(rows):
        cells = [table.rows[row][column] for column in columns.values]
        found[i] = list(map(_number, cells))
        if not np.isfinite(found[i]).all():
            cell = next(c for c, x in zip(cells, found[i], strict=True) if not np.isfinite(x))
            wrong.append(f"{cell!r} ({table.places[row]})")
    problems.add("rows with a value that is no finite number", wrong)
    return found


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _kind(
    table: Table,
    values: np.ndarray,
    rows: Sequence[int],
    logits: bool,
    problems: _Problems,
    notes: list[str],
) -> str:
    sums = values.sum(axis=1)
    inside = ((values >= -1e-6) & (values <= 1 + 1e-3)).all(axis=1)
    proper = inside & (np.abs(sums - 1) <= _ROUNDING)
    if logits:
        if proper.all():
            notes.append("the values look like probabilities, but --logits says otherwise")
        return "logits"
    if proper.mean() > 0.5:
        wrong = [
            f"{table.places[rows[i]]} (sum {sums[i]:.4g})" for i in np.flatnonzero(~proper).tolist()
        ]
        problems.add("rows of probabilities that are not in 0 to 1 or do not add up to 1", wrong)
        return "probabilities"
    if (values < 0).any():
        notes.append("values are taken for logits (or log-probabilities): some are negative")
        return "logits"
    problems.lines.append(
        f"values are not negative and add up to {np.median(sums):.4g} in the middle row: neither "
        "probabilities nor evidently logits. Divide each row by its sum, or say --logits"
    )
    return "probabilities"


def _log_probabilities(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "logits":
        shifted = values - values.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    values = np.maximum(values, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values / values.sum(axis=1, keepdims=True))
