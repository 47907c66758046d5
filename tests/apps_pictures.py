"""Photographs, groups and videos for the tests of `fer_jax.apps`."""

import functools
import re
import struct
from pathlib import Path

import cv2
import jax
import numpy as np
from matplotlib import cbook
from PIL import Image

from fer_jax.apps.predictor import Predictor
from fer_jax.data import drawn
from fer_jax.models import MODELS


@functools.cache
def photograph() -> np.ndarray:
    """Grace Hopper, `[600, 512, 3]` uint8, RGB; public domain, ships with matplotlib."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    picture = np.asarray(Image.open(path).convert("RGB"))
    picture.setflags(write=False)
    return picture


def group() -> np.ndarray:
    """Three faces of different size, `[600, 1536, 3]`; the largest in the middle, one mirrored."""
    large = photograph()
    picture = np.full((600, 1536, 3), 90, np.uint8)
    picture[100:520, 80:438] = scaled(large, 0.7)
    picture[:, 512:1024] = large
    picture[250:550, 1100:1356] = scaled(large[:, ::-1], 0.5)
    return picture


def scaled(picture: np.ndarray, factor: float) -> np.ndarray:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(picture), None, fx=factor, fy=factor, interpolation=how)


def turned(picture: np.ndarray, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Turned anticlockwise about a point, its border going on."""
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1)
    size = picture.shape[1::-1]
    return cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE)


def crops(count: int, seed: int = 0) -> np.ndarray:
    """Drawn faces, `[count, 48, 48]` uint8."""
    return drawn.draw_faces(np.arange(count) % 7, seed=seed)[..., 0]


@functools.cache
def predictor(name: str = "arch02", seed: int = 0) -> Predictor:
    """A network that was never trained, with weights large enough that its answers differ."""
    model = MODELS[name]()
    variables = model.init(jax.random.key(seed), np.zeros((1, 48, 48, 1), np.float32), train=False)
    return Predictor(model, variables, f"untrained_{name}")


def write_video(path: Path, frames, rate: float = 10, codec: str = "mp4v") -> Path:
    """Writes RGB frames; MJPG in .avi with odd sides too."""
    height, width = frames[0].shape[:2]
    odd_too = codec == "MJPG" and path.suffix == ".avi"
    api = cv2.CAP_OPENCV_MJPEG if odd_too else cv2.CAP_FFMPEG
    code = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(path), api, code, rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """Returns all frames, RGB, and the header's rate."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1])


def set_rotation(path: Path, degrees: int) -> None:
    """Writes into an .mp4 that players are to turn it clockwise (ISO 14496-12, 8.3.2)."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands after 40 bytes
    unit = 1 << 16
    values = (a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)


def set_durations(path: Path, durations: list[tuple[int, int]]) -> None:
    """Gives an .mp4 the frame durations (count, ticks), so that its rate varies (8.6.1.2)."""
    data = path.read_bytes()
    at = data.index(b"stts") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    table = b"".join(struct.pack(">II", count, ticks) for count, ticks in durations)
    box = struct.pack(">I4sII", 16 + len(table), b"stts", 0, len(durations)) + table
    grown = bytearray(data[:at] + box + data[at + size :])
    assert data.index(b"moov") > data.index(b"mdat")  # so that no chunk moves
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        start = grown.index(name) - 4
        length = int.from_bytes(grown[start : start + 4], "big") + len(box) - size
        grown[start : start + 4] = length.to_bytes(4, "big")
    path.write_bytes(grown)


def set_rate_to_zero(path: Path) -> None:
    """Writes into an .avi that no frame is to be shown in any time."""
    data = bytearray(path.read_bytes())
    start = data.index(b"strh") + 8 + 20  # dwScale, dwRate
    data[start + 4 : start + 8] = bytes(4)
    path.write_bytes(data)


def slow_down(path: Path, factor: int) -> None:
    """Makes what an .mkv with MJPG shows after 0.4 s so many times as slow (RFC 9559, 5.1.3).

    Its frames are large enough to be clusters of their own, about 5 KB.
    """

    def later(time_ms: float) -> float:
        return max(time_ms, 400 + (time_ms - 400) * factor)

    data = bytearray(path.read_bytes())
    for found in re.finditer(rb"\xe7\x82(..)[\xa0\xa3]", data, re.DOTALL):  # a cluster's Timestamp
        at = found.start(1)
        struct.pack_into(">H", data, at, int(later(*struct.unpack_from(">H", data, at))))
    at = data.index(b"\x44\x89\x88") + 3  # Duration
    struct.pack_into(">d", data, at, later(*struct.unpack_from(">d", data, at)))
    path.write_bytes(data)
