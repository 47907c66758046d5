"""From files, folders and cameras to a table, annotated copies and a summary."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fer_jax import errors
from fer_jax.apps import annotate, explain, picture, table, video
from fer_jax.apps.predictor import Face, Predictor
from fer_jax.apps.table import Add, Table
from fer_jax.errors import CopyError, PictureError
from fer_jax.runs import workdir
from fer_jax.runs.stop import StopRequest

CHUNK_PIXELS = 16_000_000  # of pictures whose faces share a batch; more than one if they are small
CHUNK_PICTURES = 16

_QUIET = None  # tqdm's way to show progress to terminals only
_COPY = "_faces"  # how the name of an annotated copy ends, before .jpg, .mp4 or .avi
_RECORDING = re.compile(r"camera\d+(_\d+)?")  # a camera's, before that


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
    unwritten: int = 0
    damaged: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        """Returns a line for people."""
        parts = [f"{self.with_faces} with a face", f"{self.faceless} without a face"]
        parts += [f"{self.unread} could not be read"] * bool(self.unread)
        parts += [f"{self.unwritten} could not be written"] * bool(self.unwritten)
        parts += [f"{self.damaged} damaged in part"] * bool(self.damaged)
        parts += [f"{self.skipped} in the table already"] * bool(self.skipped)
        return ", ".join(parts)

    @property
    def status(self) -> int:
        """The exit status: 0 if everything was read and has a face, else 1."""
        return int(bool(self.faceless or self.unread or self.unwritten or self.damaged))


def find_files(paths: Sequence[Path], out: Path | None) -> tuple[list[Path], Path, int]:
    """Lists the files to look at.

    Folders that cannot be listed, and how many copies are left out, are named on standard error.

    Args:
      paths: files, which are taken whatever they are called; folders, in which every picture and
        video is taken, by the ending of its name and in alphabetical order. Hidden ones are not.
        Each folder is searched once; links to folders are followed last, so that a file that has
        a path without them keeps it.
      out: the folder of annotated copies; those that lie in it are left out.

    Returns:
      The files, each once; the folder that all lie in; how many folders could not be listed.
    """
    found: dict[Path, None] = {}
    unread: list[OSError] = []
    seen: set[Path] = set()
    queue = sorted(paths, key=lambda path: os.path.isdir(path) and os.path.islink(path))
    for path in queue:  # which grows by the links in folders
        files = _files_in(path, seen, queue, unread) if os.path.isdir(path) else [path]
        found |= dict.fromkeys(files)
    for error in unread:
        _say(f"{error.filename} cannot be read: {errors.reason(error)}")
    files = [path for path in found if not (out and _is_copy(path, out))]
    if copies := len(found) - len(files):
        what, are = ("copies", "are") if copies > 1 else ("copy", "is")
        _say(f"{copies} annotated {what} in {out} {are} left out")
    roots = {os.path.abspath(p if os.path.isdir(p) else p.parent) for p in paths}
    return files, Path(os.path.commonpath(roots)) if roots else Path(), len(unread)


def _files_in(
    top: Path, seen: set[Path], links: list[Path], unread: list[OSError]
) -> Iterator[Path]:
    """Yields the pictures and videos in a folder.

    Args:
      top: the folder; the others in it are searched too.
      seen: folders to pass over; those searched are added.
      links: those to folders are added, and not followed.
      unread: what cannot be listed is added.
    """
    known = picture.SUFFIXES | video.SUFFIXES
    for folder, folders, names in os.walk(top, onerror=unread.append):
        here = Path(folder)
        if here.resolve() in seen:  # named twice, or a link leads back here
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [here / name for name in folders if os.path.islink(here / name)]
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                yield here / name


def _is_copy(path: Path, out: Path) -> bool:
    """Says whether a file is an annotated copy, by its name and place."""
    if not path.stem.endswith(_COPY):
        return False
    source = path.stem.removesuffix(_COPY)
    ending = Path(source).suffix.lower()
    if path.suffix in video.WRITTEN:
        named = ending in video.SUFFIXES or _RECORDING.fullmatch(source) is not None
    else:
        named = ending in picture.SUFFIXES and path.suffix == ".jpg"
    return named and path.parent.resolve().is_relative_to(out.resolve())


def run(
    predictor: Predictor,
    files: Sequence[Path],
    root: Path,
    options: Options,
    rows: Table | None,
    camera: int | None = None,
    unread: int = 0,
) -> int:
    """Looks at files, and then at a camera until it is interrupted.

    What cannot be read, or its copy not be written, is named on standard error, and the next one
    is done.

    Args:
      predictor: what predicts.
      files: pictures and videos.
      root: a folder that they lie in; annotated copies lie in `options.out` likewise.
      options: what to do with each.
      rows: table to go on with; None to print what is found. What it holds is not done again; but
        files without a face are, without detection, which takes each picture for one.
      camera: its index; None for none.
      unread: how many folders could not be listed.

    Returns:
      The exit status: see :class:`Tally`.

    Raises:
      FerError: if the table cannot be written, no copy can, or the camera cannot be read.
    """
    if options.out:
        _check_writable(options.out)
    tally = Tally(unread=unread)
    wanted = _not_done(files, rows, options.detect, tally) if rows else files
    if tally.skipped and options.out:
        _say(f"{tally.skipped} of {len(files)} files are in the table already and get no copy")
    work = _Work(predictor, root, options, rows, tally)
    pictures = [f for f in wanted if f.suffix.lower() not in video.SUFFIXES]
    work.look_at_pictures(pictures)
    for file in wanted:
        if file.suffix.lower() in video.SUFFIXES:
            work.look_at_video(file)
    if camera is not None:
        work.look_at_video(camera)
    if len(files) > 1 or tally.skipped:
        _say(f"{len(files)} file{'s' * (len(files) > 1)}: {tally}")
    return tally.status


def _not_done(files: Sequence[Path], rows: Table, detect: bool, tally: Tally) -> list[Path]:
    """Returns which files the table lacks or has to forget; counts the others."""
    wanted, again = [], set()
    for file in files:
        name = table.name_of(file)
        faceless = name in rows.faceless
        if name in rows.done and (detect or not faceless):
            tally.skipped += 1
            tally.faceless += faceless
            continue
        wanted.append(file)
        if faceless:
            again.add(name)
    if again:
        rows.forget(again)
    return wanted


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
        try:
            with self._collect(name) as add:
                add(None, None, faces)
                if target := self._target(file):
                    large, shown = annotate.enlarge(image, faces)
                    labels = [face.probabilities for face in shown]
                    drawn = self._draw(large, shown, labels, self._explain(shown, labels))
                    _save(drawn, target.with_name(target.name + ".jpg"))
        except CopyError as error:
            self._unwritten(error)
            return
        self._count(name, bool(faces), image.shape[:2])
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
        except CopyError as error:
            self._unwritten(error)
        except PictureError as error:
            self._unread(error)

    def _look_at_camera(self, index: int) -> None:
        name = table.name_of_camera(index)

        def add(frame: int | None, time_s: float | None, faces: Sequence[Face]) -> None:
            with self._collect(name) as add_some:  # written at once: there is no end to wait for
                add_some(frame, time_s, faces)

        stem = _free_stem(self._options.out, name) if self._options.out else None
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
        shown: tuple[list[Face], list[np.ndarray], list[np.ndarray]] = ([], [], [])
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(
                tqdm(total=frames.count, unit=" frames", desc=name, disable=_QUIET)
            )
            writer = None
            if stem:  # opened before anything is looked at
                writer = stack.enter_context(video.Writer(stem, frames.rate, frames.size))
            for frame, faces in self._looked_at(frames, writer is not None, stopped):
                if faces is not None:
                    probabilities = [face.probabilities for face in faces]
                    looked += 1
                    if faces:
                        with_faces += 1
                        sums += probabilities[0]
                    add(frame.index, frame.time_s, faces)
                    if writer:
                        labels = smooth(frame.time_s, [face.box for face in faces], probabilities)
                        shown = faces, labels, self._explain(faces, labels)
                if writer and frame.picture is not None:
                    time_s = frame.time_s if frames.camera else None
                    writer.write(self._draw(frame.picture, *shown), time_s)
                progress.update()
        self._count(name, with_faces > 0, None)
        if frames.lost:
            self._tally.damaged += 1
            announced = frames.count or frames.read
            _say(f"{name}: {frames.lost} of {announced} frames could not be decoded")
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
        most = 1 if frames.camera else CHUNK_PICTURES  # a camera's are shown as they come
        for chunk in _chunks(items, lambda frame: frame.picture, most):
            wanted = [f.picture for f in chunk if f.index % every == 0 and f.picture is not None]
            found = iter(self._predictor.predict_pictures(wanted, self._options.detect))
            for frame in chunk:
                yield frame, next(found) if frame.index % every == 0 else None

    # Both

    @contextlib.contextmanager
    def _collect(self, name: str) -> Iterator[Add]:
        if self._rows is None:
            yield lambda frame, time_s, faces: None
        else:
            with self._rows.collect(name) as add:
                yield add

    def _target(self, file: Path) -> Path | None:
        """Returns where an annotated copy goes, without its ending; None for nowhere."""
        if self._options.out is None:
            return None
        inside = Path(os.path.abspath(file)).relative_to(os.path.abspath(self._root))
        return self._options.out / inside.with_name(inside.name + _COPY)

    def _explain(self, faces: list[Face], probabilities: list[np.ndarray]) -> list[np.ndarray]:
        """Returns `[48, 48]` of each face, what its label rests on; nothing if none is wanted."""
        if not self._options.explain:
            return []

        # Smoothing may have made the label another than the frame's own.
        return [
            self._predictor.explain(face, int(np.argmax(shown)))
            for face, shown in zip(faces, probabilities, strict=True)
        ]

    def _draw(
        self,
        image: np.ndarray,
        faces: list[Face],
        probabilities: list[np.ndarray],
        heats: list[np.ndarray],
    ) -> np.ndarray:
        for face, heat in zip(faces, heats, strict=False):  # none without --explain
            image = explain.overlay(image, face, heat)
        return annotate.draw(image, faces, self._predictor.classes, probabilities)

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

    def _unwritten(self, error: CopyError) -> None:
        self._tally.unwritten += 1
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


def _check_writable(out: Path) -> None:
    """Raises if nothing can be written in a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise errors.unwritable_copy(out, error) from error


def _free_stem(out: Path, name: str) -> Path:
    """Returns a path without its ending that no recording has yet."""
    stems = (str(out / f"{free}{_COPY}") for free in workdir.numbered(name))
    return Path(next(s for s in stems if not any(os.path.exists(s + e) for e in video.WRITTEN)))


def _save(image: np.ndarray, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()  # Pillow does not notice that a full disk took a part only
        Image.fromarray(image).save(data, "JPEG", quality=92)
        part.write_bytes(data.getbuffer())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise errors.unwritable_copy(path, error) from error


def _words(probabilities: np.ndarray, classes: Sequence[str]) -> str:
    order = np.argsort(-probabilities)
    return ", ".join(f"{classes[i]} {probabilities[i]:.3f}" for i in order)


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # a file's name need not be text
    tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
