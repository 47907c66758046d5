"""From files, folders and cameras to a table, annotated copies and a summary."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fer_jax.apps import annotate, explain, picture, table, video
from fer_jax.apps.predictor import Face, Predictor
from fer_jax.apps.table import Row, Table
from fer_jax.errors import PictureError
from fer_jax.runs.stop import StopRequest

CHUNK_PIXELS = 16_000_000  # of pictures whose faces share a batch; more than one if they are small
CHUNK_PICTURES = 16

_QUIET = None  # tqdm's way to show progress to terminals only

type Add = Callable[[Sequence[Row]], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do with each picture or video.

    Attributes:
      detect: look for faces; otherwise each picture's middle square is taken for one.
      out: folder of annotated copies; None for none.
      explain: lay over each face what its prediction rests on.
      every: of a video, every how many frames are looked at.
      smooth_s: seconds over which labels in an annotated video are smoothed; 0 for not at all.
    """

    detect: bool = True
    out: Path | None = None
    explain: bool = False
    every: int = 1
    smooth_s: float = 0.5


@dataclasses.dataclass
class Tally:
    """How many files there were of each kind."""

    with_faces: int = 0
    faceless: int = 0
    unread: int = 0
    damaged: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        """Returns a line for people."""
        parts = [f"{self.with_faces} with a face", f"{self.faceless} without a face"]
        parts += [f"{self.unread} could not be read"] * bool(self.unread)
        parts += [f"{self.damaged} damaged in part"] * bool(self.damaged)
        parts += [f"{self.skipped} in the table already"] * bool(self.skipped)
        return ", ".join(parts)

    @property
    def status(self) -> int:
        """The exit status: 0 if everything was read and has a face, else 1."""
        return int(bool(self.faceless or self.unread or self.damaged))


def find_files(paths: Sequence[Path], out: Path | None) -> tuple[list[Path], Path]:
    """Lists the files to look at.

    Args:
      paths: files, which are taken whatever they are called; folders, in which every picture and
        video is taken, by the ending of its name and in alphabetical order. Hidden ones are not.
      out: a folder that is left out.

    Returns:
      The files, each once, and the folder that all lie in.
    """
    known = picture.SUFFIXES | video.SUFFIXES
    skipped = out.resolve() if out else None
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        for folder, folders, names in os.walk(path):
            here = Path(folder)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and (here / name).resolve() != skipped
            )
            found |= dict.fromkeys(
                here / name
                for name in sorted(names)
                if not name.startswith(".") and Path(name).suffix.lower() in known
            )
    roots = {str((p if p.is_dir() else p.parent).resolve()) for p in paths}
    return list(found), Path(os.path.commonpath(roots)) if roots else Path()


def run(
    predictor: Predictor,
    files: Sequence[Path],
    root: Path,
    options: Options,
    rows: Table | None,
    camera: int | None = None,
) -> int:
    """Looks at files, and then at a camera until it is interrupted.

    What cannot be read is named on standard error, and the next one is done.

    Args:
      predictor: what predicts.
      files: pictures and videos.
      root: a folder that they lie in; annotated copies lie in `options.out` likewise.
      options: what to do with each.
      rows: table to go on with; None to print what is found.
      camera: its index; None for none.

    Returns:
      The exit status: see :class:`Tally`.

    Raises:
      FerError: if the table or a copy cannot be written, or the camera cannot be read.
    """
    tally = Tally()
    wanted = []
    for file in files:
        if rows and table.name_of(file) in rows.done:
            tally.skipped += 1
            tally.faceless += table.name_of(file) in rows.faceless
        else:
            wanted.append(file)
    with contextlib.suppress(BrokenPipeError):
        work = _Work(predictor, root, options, rows, tally)
        pictures = [f for f in wanted if f.suffix.lower() not in video.SUFFIXES]
        work.look_at_pictures(pictures)
        for file in wanted:
            if file.suffix.lower() in video.SUFFIXES:
                work.look_at_video(file)
        if camera is not None:
            work.look_at_video(camera)
    if len(files) > 1:
        _say(f"{len(files)} files: {tally}")
    return tally.status


class _Work:
    """What `run` carries from file to file."""

    def __init__(
        self, predictor: Predictor, root: Path, options: Options, rows: Table | None, tally: Tally
    ):
        self._predictor = predictor
        self._root = root
        self._options = options
        self._rows = rows
        self._tally = tally

    # Pictures

    def look_at_pictures(self, files: Sequence[Path]) -> None:
        with tqdm(
            total=len(files), unit=" pictures", disable=_QUIET if len(files) > 1 else True
        ) as progress:
            for chunk in _chunks(self._decoded(files, progress), lambda item: item[1]):
                found = self._predictor.predict_pictures(
                    [image for _, image in chunk], self._options.detect
                )
                for (file, image), faces in zip(chunk, found, strict=True):
                    self._picture(file, image, faces)
                    progress.update()

    def _decoded(self, files: Sequence[Path], progress: tqdm) -> Iterator[tuple[Path, np.ndarray]]:
        for file in files:
            try:
                yield file, picture.decode(file)
            except PictureError as error:
                self._unread(error)
                progress.update()

    def _picture(self, file: Path, image: np.ndarray, faces: list[Face]) -> None:
        name = table.name_of(file)
        with self._collect(name) as add:
            self._count(name, bool(faces), image.shape[:2])
            if target := self._target(file):
                large, shown = annotate.enlarge(image, faces)
                drawn = annotate.draw(self._explained(large, shown), shown, self._predictor.classes)
                _save(drawn, target.with_name(target.name + ".jpg"))
            add(table.rows_of(name, None, None, faces, *self._of()))
        if self._rows is None:
            for i, face in enumerate(faces):
                _print(f"{name} face {i}: {_words(face.probabilities, self._predictor.classes)}")

    # Videos

    def look_at_video(self, source: Path | int) -> None:
        if isinstance(source, int):
            self._look_at_camera(source)
            return
        name = table.name_of(source)
        try:
            with video.Video(source) as frames, self._collect(name) as add:
                self._frames(name, frames, self._target(source), add)
        except PictureError as error:
            self._unread(error)

    def _look_at_camera(self, index: int) -> None:
        name = f"camera{index}"

        def add(rows: Sequence[Row]) -> None:  # written at once: there is no end to wait for
            with self._collect(name) as add_some:
                add_some(rows)

        stem = self._options.out / name if self._options.out else None
        with StopRequest() as stop, video.Video(index) as frames:
            self._frames(name, frames, stem, add, lambda: stop.signum is not None)
        if stop.signum is None:
            raise PictureError(f"{frames.name} stopped after {frames.read} frames")

    def _frames(
        self,
        name: str,
        frames: video.Video,
        stem: Path | None,
        add: Add,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Looks at frames: rows to `add`, an annotated copy to `stem`, a summary to people."""
        classes = self._predictor.classes
        smooth = video.Smoother(self._options.smooth_s)
        looked = with_faces = 0
        sums = np.zeros(len(classes))  # of each frame's first face
        shown: tuple[list[Face], list[np.ndarray]] = ([], [])
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(
                tqdm(total=frames.count, unit=" frames", desc=name, disable=_QUIET)
            )
            writer = stack.enter_context(video.Writer(stem, frames.rate)) if stem else None
            for frame, faces in self._looked_at(frames, writer is not None, stopped):
                if faces is not None:
                    probabilities = [face.probabilities for face in faces]
                    looked += 1
                    if faces:
                        with_faces += 1
                        sums += probabilities[0]
                    add(table.rows_of(name, frame.index, frame.time_s, faces, *self._of()))
                    boxes = [face.box for face in faces]
                    shown = faces, smooth(frame.time_s, boxes, probabilities)
                if writer and frame.picture is not None:
                    image = self._explained(frame.picture, shown[0])
                    writer.write(annotate.draw(image, shown[0], classes, shown[1]))
                progress.update()
        self._count(name, with_faces > 0, None)
        if frames.lost:
            self._tally.damaged += 1
            _say(f"{name}: {frames.lost} of {frames.count} frames could not be decoded")
        if self._rows is None:
            line = f"{name}: {looked} frames looked at, {with_faces} with a face"
            if with_faces:
                line += f"; mean of the first: {_words(sums / with_faces, classes)}"
            _print(line)

    def _looked_at(
        self, frames: video.Video, decode_all: bool, stopped: Callable[[], bool]
    ) -> Iterator[tuple[video.Frame, list[Face] | None]]:
        """Yields every frame with its faces; with None where it is not one to look at."""
        every = self._options.every
        items = frames.frames(every, decode_all, stopped)
        most = CHUNK_PICTURES if frames.count else 1  # a camera's are shown as they come
        for chunk in _chunks(items, lambda frame: frame.picture, most):
            wanted = [f.picture for f in chunk if f.index % every == 0 and f.picture is not None]
            found = iter(self._predictor.predict_pictures(wanted, self._options.detect))
            for frame in chunk:
                yield frame, next(found) if frame.index % every == 0 else None

    # Both

    def _of(self) -> tuple[Sequence[str], str]:
        return self._predictor.classes, self._predictor.name

    @contextlib.contextmanager
    def _collect(self, name: str) -> Iterator[Add]:
        if self._rows is None:
            yield lambda rows: None
        else:
            with self._rows.collect(name) as add:
                yield add

    def _target(self, file: Path) -> Path | None:
        """Returns where an annotated copy goes, without its ending; None for nowhere."""
        if self._options.out is None:
            return None
        inside = file.resolve().relative_to(self._root)
        return self._options.out / inside.with_name(inside.name + "_faces")

    def _explained(self, image: np.ndarray, faces: list[Face]) -> np.ndarray:
        for face in faces if self._options.explain else ():
            image = explain.overlay(image, face, self._predictor.explain(face))
        return image

    def _count(self, name: str, found: bool, size: tuple[int, int] | None) -> None:
        if found:
            self._tally.with_faces += 1
            return
        self._tally.faceless += 1
        hint = ""
        if size and max(size) <= 100:
            hint = "; if it is a face already, cut out like FER2013's, use --no-detect"
        _say(f"{name}: no face{hint}")

    def _unread(self, error: PictureError) -> None:
        self._tally.unread += 1
        _say(str(error))


def _chunks[T](
    items: Iterable[T],
    picture_of: Callable[[T], np.ndarray | None],
    most: int = CHUNK_PICTURES,
) -> Iterator[list[T]]:
    """Groups items so that a group's pictures stay few and small."""
    chunk: list[T] = []
    pixels = pictures = 0
    for item in items:
        image = picture_of(item)
        chunk.append(item)
        if image is not None:
            pictures, pixels = pictures + 1, pixels + image.shape[0] * image.shape[1]
        if pictures >= most or pixels >= CHUNK_PIXELS or len(chunk) >= 16 * most:
            yield chunk
            chunk, pixels, pictures = [], 0, 0
    if chunk:
        yield chunk


def _save(image: np.ndarray, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part, "JPEG", quality=92)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        part.unlink(missing_ok=True)
        raise PictureError(f"cannot write {path}: {reason}; see --out=DIR") from error


def _words(probabilities: np.ndarray, classes: Sequence[str]) -> str:
    order = np.argsort(-probabilities)
    return ", ".join(f"{classes[i]} {probabilities[i]:.3f}" for i in order)


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stdout)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
