"""Videos and cameras: frames in, upright and with their times; annotated frames out."""

import contextlib
import dataclasses
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import errors
from fer_jax.apps import opencv
from fer_jax.errors import CopyError, FerError, PictureError

SUFFIXES = frozenset(
    (".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
WRITTEN = (".mp4", ".avi")  # the endings that Writer gives

FALLBACK_RATE = 25.0  # frames per second, where neither header nor time stamps say
_RATES = (1 / 60, 240.0)  # frames per second that are believed
_FULL = 1 << 20  # bytes; a disk with fewer free has cut a video short
_COUNTED = (".avi", ".m4v", ".mov", ".mp4")  # formats whose header has the number of frames
_PATIENCE = 1000  # damaged frames in a row; more are taken for the end


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
      index: from 0.
      time_s: seconds.
      picture: `[height, width, 3]` uint8, RGB; None where it was not decoded.
    """

    index: int
    time_s: float
    picture: np.ndarray | None


class Video:
    """The frames of a file or a camera, one after another; a context manager.

    Attributes:
      name: of the file or the camera.
      camera: whether it is one.
      rate: frames per second, of the header or, where that cannot be, of the first time stamps.
      size: width and height in pixels, upright, of each frame.
      count: frames that the header announces; None if it does not, or of a camera. Matroska, WebM
        and others tell only how long they are, which OpenCV multiplies by the rate.
      read: frames that have been reached so far.
    """

    def __init__(self, source: Path | int):
        """Opens a file, or a camera by its index.

        Raises:
          ExtraError: if OpenCV is not installed.
          PictureError: if there is no such file or camera, or it is no video.
        """
        self._cv2: Any = opencv.load()
        self.camera = isinstance(source, int)
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture = self._open(source)
        self.read = self._damaged = self._uneven = 0
        width = self._capture.get(self._cv2.CAP_PROP_FRAME_WIDTH)
        height = self._capture.get(self._cv2.CAP_PROP_FRAME_HEIGHT)
        self.size = (int(width), int(height))
        if not self.camera and min(self.size) == 0:
            raise self._holds_nothing()
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not self.camera and 0 < count < 2**31 else None
        self.rate = self._announced_rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        if not _is_rate(self.rate):
            self.rate = FALLBACK_RATE if self.camera else self._measure_rate(source)

    def _open(self, source: Path | int) -> Any:
        cv2 = self._cv2
        if isinstance(source, int):
            capture = cv2.VideoCapture(source)
            if not capture.isOpened():
                raise PictureError(
                    f"camera {source} cannot be opened: is it plugged in, not in use, and may this "
                    "program use it (Linux: group `video`; macOS and Windows: privacy settings)?"
                )
            return capture
        if not os.path.isfile(source):
            what = "is a folder" if os.path.isdir(source) else "does not exist or cannot be read"
            raise PictureError(f"{source} {what}")
        capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            empty = " (it is empty)" if source.stat().st_size == 0 else ""
            raise PictureError(f"{source} is not a video that OpenCV reads, or it is cut{empty}")
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # frames upright, as players show them
        return capture

    def _measure_rate(self, source: Path | int) -> float:
        """Returns the rate that the time stamps of the first frames show."""
        capture = self._open(source)
        times = []
        while len(times) < 50 and capture.grab():
            times.append(capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000)
        capture.release()
        if len(times) > 1 and times[-1] > times[0]:
            rate = (len(times) - 1) / (times[-1] - times[0])
            if _is_rate(rate):
                return rate
        return FALLBACK_RATE

    def __enter__(self) -> "Video":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file or the camera."""
        self._capture.release()

    def frames(
        self, every: int, decode_all: bool, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Frame]:
        """Yields the frames until the end.

        Times are the container's; where it has none, of the rate; a camera's, since its first
        frame. Frames of a file that cannot be decoded are left out, but for their indices.

        Args:
          every: which are wanted: those whose index it divides.
          decode_all: give the pictures of the others too, not None.
          stopped: asked before each frame; True ends.

        Raises:
          PictureError: if a file holds no frame at all.
        """
        last = start = None
        while not stopped() and self._grab():
            now = time.monotonic()
            start = now if start is None else start
            time_s = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
            if self.camera:
                time_s = now - start
            elif last is not None and not time_s > last:
                time_s = last + 1 / self.rate
            if last is not None:
                self._uneven += not 0.5 < (time_s - last) * self._announced_rate < 1.5
            last = time_s
            index, self.read = self.read, self.read + 1
            picture = None
            if decode_all or index % every == 0:
                there, bgr = self._capture.retrieve()
                if not there:
                    self._damaged += 1
                    continue
                picture = _to_rgb(bgr)
            yield Frame(index, round(time_s, 4), picture)
        if not self.camera and not self.read:
            raise self._holds_nothing()

    def _holds_nothing(self) -> PictureError:
        return PictureError(f"{self.name} holds no frame that can be decoded")

    def _grab(self) -> bool:
        """Goes to the next frame, past damaged ones, which are counted; returns if there is one.

        A damaged frame and the end look the same, but behind the end nothing comes. Frames that are
        damaged and the last are part of the end.
        """
        for failed in range(1 if self.camera else _PATIENCE):
            if self._capture.grab():
                self.read += failed
                self._damaged += failed
                return True
        return False

    @property
    def lost(self) -> int:
        """Frames that could not be decoded, or were announced and are not there.

        A single missing one may be the header's rounding. What a decoder conceals is not known:
        OpenCV tells nothing of it, nor does it let a decoder be told to conceal nothing.
        """
        missing = (self.count or 0) - self.read
        # Duration times rate is no number of frames where the rate varies.
        exact = self.name.lower().endswith(_COUNTED) or self._uneven <= 0.1 * self.read
        return self._damaged + (missing if missing > 1 and exact else 0)


def _is_rate(rate: float) -> bool:
    return math.isfinite(rate) and _RATES[0] <= rate <= _RATES[1]


def _to_rgb(frame: np.ndarray) -> np.ndarray:
    """Returns `[height, width, 3]` uint8, RGB, of a frame in BGR or grey."""
    if frame.ndim == 2:
        return np.repeat(frame[..., None], 3, axis=2)
    return np.ascontiguousarray(frame[..., ::-1])


class Writer:
    """Writes a video of the size, rate and duration of its input; a context manager.

    MPEG-4 in `.mp4`; where a side is odd, which that and most formats do not allow, Motion JPEG in
    `.avi`. The file appears under its name when the context is left without an error, if it holds
    a frame.
    """

    def __init__(self, stem: Path, rate: float, size: tuple[int, int]):
        """Opens the file.

        Args:
          stem: its path without `.mp4` or `.avi`.
          rate: frames per second.
          size: width and height of the frames in pixels.

        Raises:
          CopyError: if there can be no such file.
          FerError: if the disk is full.
        """
        self._cv2: Any = opencv.load()
        # MPEG-4 has 65,535 for the numerator; OpenCV makes one of three decimals, which puts the
        # slowest rates off by up to 2 %.
        self._rate = round(rate, 2) if rate > 65 else rate
        self._is_avi = any(side % 2 for side in size)
        suffix = WRITTEN[self._is_avi]
        self._path = stem.with_name(stem.name + suffix)
        self._part = stem.with_name(f".{stem.name}.part{suffix}")
        self._last: np.ndarray | None = None
        self._written = 0
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.unwritable_copy(self._path, error) from error
        self._writer = self._open(size)
        if not self._writer.isOpened():
            self._remove()
            raise CopyError(
                f"cannot write {self._path} with {size[0]}x{size[1]} pixels and {rate:g} frames "
                "per second; is its folder writable? Name another with --out=DIR"
            )

    def _open(self, size: tuple[int, int]) -> Any:
        cv2 = self._cv2
        if not self._is_avi:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            return cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, code, self._rate, size)
        code, rate = cv2.VideoWriter.fourcc(*"MJPG"), max(1, round(self._rate))
        return cv2.VideoWriter(str(self._part), cv2.CAP_OPENCV_MJPEG, code, rate, size)

    def write(self, picture: np.ndarray, time_s: float | None = None) -> None:
        """Appends a frame.

        Args:
          picture: `[height, width, 3]` uint8, RGB.
          time_s: seconds since the first frame. The frame before is repeated until then, and this
            one left out if it comes early, so that what was filmed plays as fast as it happened.
            None appends it once.
        """
        bgr = np.ascontiguousarray(picture[..., ::-1])
        due = self._written if time_s is None else time_s * self._rate  # frames before this one
        while self._last is not None and self._written <= due - 1:
            self._append(self._last)
        if self._written < due + 1:  # as cameras are not even, less than one frame is no matter
            self._append(bgr)
        self._last = bgr

    def _append(self, bgr: np.ndarray) -> None:
        self._writer.write(bgr)
        self._written += 1

    def __enter__(self) -> "Writer":
        """Returns itself."""
        return self

    def __exit__(self, kind, *_) -> None:
        """Completes the file, or removes it after an error.

        Raises:
          CopyError: if it could not be written whole.
          FerError: if the disk is full.
        """
        self._writer.release()
        try:
            if kind is None and self._written:
                self._complete()
        except OSError as error:
            raise errors.unwritable_copy(self._path, error) from error
        finally:
            self._remove()

    def _complete(self) -> None:
        if self._frames() != self._written:
            if shutil.disk_usage(self._part.parent).free < _FULL:
                raise FerError(f"cannot write {self._path}: No space left on device")
            raise CopyError(f"{self._path} cannot be written whole; do its frames differ in size?")
        if self._is_avi:
            _set_rate(self._part, self._rate)
        self._part.replace(self._path)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _frames(self) -> int:
        capture = self._cv2.VideoCapture(str(self._part), self._cv2.CAP_FFMPEG)
        count = int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return count


def _set_rate(avi: Path, rate: float) -> None:
    """Writes the rate into an .avi; OpenCV's writer rounds it to whole frames per second."""
    with avi.open("r+b") as file:
        head = file.read(512)
        file.seek(head.index(b"avih") + 8)
        file.write(struct.pack("<I", round(1e6 / rate)))  # dwMicroSecPerFrame
        file.seek(head.index(b"strh") + 28)
        file.write(struct.pack("<II", 10**6, round(1e6 * rate)))  # dwScale, dwRate


class Smoother:
    """Smooths the probabilities that are shown of each face over a window of time.

    A face is followed by its box: it is the one of the frame before that it overlaps most, by at
    least 0.3 of their union. What is shown is the mean over its last `window_s` seconds.
    """

    def __init__(self, window_s: float):
        """Starts without a face; a window of 0 shows each frame's own probabilities."""
        self._window_s = window_s
        self._tracks: list[tuple[np.ndarray, list[tuple[float, np.ndarray]]]] = []

    def __call__(
        self, time_s: float, boxes: list[np.ndarray], probabilities: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Takes a frame's faces; returns what to show of each.

        Args:
          time_s: the frame's time, later than that of the frame before.
          boxes: `[4]` of each face.
          probabilities: `[classes]` of each face.

        Returns:
          `[classes]` of each face.
        """
        from fer_jax.apps.detect import overlap

        before, self._tracks, shown = self._tracks, [], []
        for box, new in zip(boxes, probabilities, strict=True):
            likeness = [overlap(box, other) for other, _ in before]
            past: list[tuple[float, np.ndarray]] = []
            if likeness and max(likeness) >= 0.3:
                past = before.pop(int(np.argmax(likeness)))[1]
            kept = [(t, p) for t, p in past if t > time_s - self._window_s]
            kept.append((time_s, new))
            self._tracks.append((box, kept))
            shown.append(np.mean([p for _, p in kept], axis=0))
        return shown
