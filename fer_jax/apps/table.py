"""What was found, a row for each face: JSON lines or CSV, which a later start goes on with.

=================  ==============================================================================
Column             Content
=================  ==============================================================================
`file`             the path as given, `camera0` of a camera
`frame`            of a video: which one, from 0; none of a picture
`time_s`           of a video: seconds, from the container's time stamp; none of a picture
`face`             which one in the picture, from 0, left to right; none where there is no face
`box`              left, top, width and height in pixels of the upright picture, which it may leave;
                   in CSV `left`, `top`, `width`, `height`. Of `--no-detect`: the middle square
`score`            how sure the detector is, 0.7 to 1; none of `--no-detect`
`probabilities`    the seven classes' probabilities, which add up to 1, by name in the order of the
                   labels; in CSV `probability_Anger` and so on. Never smoothed
`weights`          name of the weights that they come from, `@` and how their SHA-256 begins; then
                   `+` and the name of the views, if they are averaged over some. The name of the
                   weights may change within a table, what stands behind the last `@` not
=================  ==============================================================================

A picture, or a processed frame, without a face has one row, in which the fields of a face are none:
null in JSON lines, empty in CSV. Numbers are the shortest that give the same float32.

A file's rows are written together when it is done, so a file that the table has is complete; but
for the last one if the table ends in a line without a newline that may be its: it is then taken out
and done again. A camera's are written frame by frame; of these only the unfinished line is taken
out.
"""

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fer_jax.apps.predictor import Face
from fer_jax.errors import RecordError
from fer_jax.runs import workdir

_FIELDS = ("file", "frame", "time_s", "face", "box", "score", "probabilities", "weights")
_BOX = ("left", "top", "width", "height")
_CHUNK = 1 << 20  # bytes
_MEMORY = 1 << 22  # bytes of a file's rows; more go to the disk
_CAMERA = re.compile(r"camera\d+")

type Row = dict[str, Any]
type Add = Callable[[int | None, float | None, Sequence[Face]], None]


def _rows_of(
    file: str,
    frame: int | None,
    time_s: float | None,
    faces: Sequence[Face],
    classes: Sequence[str],
    weights: str,
) -> list[Row]:
    """Returns the rows of a picture or a frame, with the keys and in the order of the module."""
    if not faces:
        values = (file, frame, time_s, None, None, None, None, weights)
        return [dict(zip(_FIELDS, values, strict=True))]
    rows = []
    for i, face in enumerate(faces):
        box = [round(float(value), 2) for value in face.box]
        score = None if face.score is None else round(face.score, 4)
        probabilities = {
            name: float(str(np.float32(p)))
            for name, p in zip(classes, face.probabilities, strict=True)
        }
        values = (file, frame, time_s, i, box, score, probabilities, weights)
        rows.append(dict(zip(_FIELDS, values, strict=True)))
    return rows


class Table:
    """A table in a file; a context manager.

    Attributes:
      done: names of the files that are complete in it.
      faceless: those among them in which no face was found.
    """

    def __init__(self, path: Path, kind: str, classes: Sequence[str], weights: str):
        """Opens a table, new or begun before.

        Args:
          path: its file.
          kind: `json` (JSON lines) or `csv`.
          classes: names of the classes, in the order of the labels.
          weights: the weights that predict, as each row names them.

        Raises:
          RecordError: if the file is no such table, is of other weights, whatever they are called,
            is being written by another process, or cannot be written.
        """
        self._path, self._kind = path, kind
        self._classes, self._weights = tuple(classes), weights
        self._columns = (
            *("file", "frame", "time_s", "face", *_BOX, "score"),
            *(f"probability_{name}" for name in classes),
            "weights",
        )
        self.done: set[str] = set()
        self.faceless: set[str] = set()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
            try:
                self._lock()
                self._go_on()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> "Table":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file.

        Raises:
          RecordError: if what was not written yet cannot be.
        """
        with self._explained():
            self._file.close()

    @contextlib.contextmanager
    def collect(self, file: str) -> Iterator[Add]:
        """Gives a function that takes what was found in a file.

        It takes frame, time in seconds, both None of a picture, and the faces there. The rows are
        written when the block ends well.

        Args:
          file: its name, as in the rows.

        Raises:
          RecordError: if they cannot be written.
        """
        spool = tempfile.SpooledTemporaryFile(_MEMORY)  # noqa: SIM115, closing it may fail
        found = False

        def add(frame: int | None, time_s: float | None, faces: Sequence[Face]) -> None:
            nonlocal found
            found = found or bool(faces)
            rows = _rows_of(file, frame, time_s, faces, self._classes, self._weights)
            text = "".join(map(self._format, rows))
            with self._explained():
                spool.write(text.encode("utf-8", "surrogateescape"))

        try:
            yield add
            with self._explained():
                spool.seek(0)
                self._append(spool)
            self._note(file, found)
        finally:
            with self._explained():
                spool.close()

    def forget(self, files: Collection[str]) -> None:
        """Takes out the rows of files, which are then not done.

        Args:
          files: their names, as in the rows.

        Raises:
          RecordError: if the table cannot be written anew; it is then as it was.
        """
        path = self._path.resolve()  # of a link, the file that it leads to is replaced
        part = path.with_name(f".{path.name}.part")
        with self._explained():
            try:
                with part.open("wb") as kept:
                    self._file.seek(0)
                    for number, line in enumerate(self._file, 1):
                        header = self._kind == "csv" and number == 1
                        if header or self._parse(line, number)[0] not in files:
                            kept.write(line)
                shutil.copymode(path, part)
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            self._file.close()
            self._file = path.open("a+b")
            self._lock()
        self.done -= set(files)
        self.faceless -= set(files)

    def _lock(self) -> None:
        """Keeps other processes from the table, where the file system knows locks."""
        try:
            workdir.lock_file(self._file.fileno())
        except BlockingIOError as error:
            raise RecordError(
                f"another process is writing {self._path}; wait for it, or name another table"
            ) from error
        except OSError:
            pass  # then it is as without this method

    def _append(self, spool: IO[bytes]) -> None:
        """Writes so that only the very last write can leave a newline at the table's end."""
        while chunk := spool.read(_CHUNK):
            if chunk.endswith(b"\n"):
                chunk += spool.read(1)
            self._file.write(chunk)
            self._file.flush()

    def _note(self, file: str, found: bool) -> None:
        self.done.add(file)
        if found:
            self.faceless.discard(file)
        else:
            self.faceless.add(file)

    def _format(self, row: Row) -> str:
        if self._kind == "json":
            return json.dumps(row, ensure_ascii=False) + "\n"
        box, probabilities = row["box"] or [None] * 4, row["probabilities"] or {}
        values = [row["file"], row["frame"], row["time_s"], row["face"], *box, row["score"]]
        values += [probabilities.get(name) for name in self._classes] + [row["weights"]]
        return _csv_line(values)

    def _go_on(self) -> None:
        """Reads what is there, takes out a file that is not complete, and stands at the end."""
        self._file.seek(0)
        start, current, with_faces = 0, None, set()
        line, number, position = b"\n", 0, 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            if number > 1 or self._kind == "json":
                file, face, camera = self._parse(line, number)
                if camera:  # its rows have no end to wait for: each is complete
                    current = None
                else:
                    if file != current:
                        start, current = position, file
                    self.done.add(file)
                    if face:
                        with_faces.add(file)
            elif line.decode("utf-8", "replace") != _csv_line(self._columns):
                raise self._foreign(number)
            position += len(line)
        if not line.endswith(b"\n"):
            self._check_is_torn(line, number)
            if current is not None and self._may_begin(line, current):
                self.done.discard(current)
                position = start
            self._file.truncate(position)
        self.faceless = self.done - with_faces
        if self._file.seek(0, io.SEEK_END) == 0 and self._kind == "csv":
            self._file.write(_csv_line(self._columns).encode())
            self._file.flush()

    def _parse(self, line: bytes, number: int) -> tuple[str, bool, bool]:
        """Returns the file of a row, whether it has a face, and whether it is a camera's."""
        text = line.decode("utf-8", "surrogateescape")
        try:
            if self._kind == "json":
                row = json.loads(text)
                known = tuple(row) == _FIELDS
                if row["probabilities"] is not None:
                    known = known and tuple(row["probabilities"]) == self._classes
                file, frame, face, weights = (
                    row[name] for name in ("file", "frame", "face", "weights")
                )
            else:
                values = next(csv.reader([text]))
                known = len(values) == len(self._columns)
                file, frame, face, weights = values[0], values[1], values[3], values[-1]
            same = weights.rpartition("@")[2] == self._weights.rpartition("@")[2]
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
            raise self._foreign(number) from None
        if not known:
            raise self._foreign(number)
        if not same:
            raise RecordError(
                f"{self._path} was made with the weights {weights!r}, these are "
                f"{self._weights!r}; write to another file"
            )
        camera = frame not in (None, "") and _CAMERA.fullmatch(file)
        return file, face not in (None, ""), bool(camera)

    def _may_begin(self, line: bytes, file: str) -> bool:
        """Says whether the unfinished last line may be of a file."""
        if self._kind == "json":
            begins = f'{{"file": {json.dumps(file, ensure_ascii=False)}, '
        else:
            begins = _csv_line([file, ""]).rstrip("\n")
        return _agree(line, begins.encode("utf-8", "surrogateescape"))

    def _check_is_torn(self, line: bytes, number: int) -> None:
        """Raises if the unfinished last line is not the beginning of a row."""
        begins = b'{"file": ' if self._kind == "json" else b""
        header = _csv_line(self._columns).encode()
        if self._kind == "csv" and number == 1:
            begins = header
        if not _agree(line, begins):
            raise self._foreign(number)

    def _foreign(self, number: int) -> RecordError:
        return RecordError(
            f"{self._path} is no table of `fer-jax predict` in this format (line {number}); write "
            "to another file"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordError(f"cannot write {self._path}: {error.strerror or error}") from error


def name_of(path: Path) -> str:
    """Returns a file's name in the table: its path, on one line."""
    return str(path).replace("\n", "\\n").replace("\r", "\\r")


def name_of_camera(index: int) -> str:
    """Returns a camera's name in the table."""
    return f"camera{index}"


def _agree(a: bytes, b: bytes) -> bool:
    """Says whether one begins with the other."""
    return a.startswith(b) or b.startswith(a)


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
