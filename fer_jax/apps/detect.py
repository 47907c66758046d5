"""Finds faces with YuNet (Wu, Peng & Yu 2023, *YuNet: a tiny millisecond-level face detector*).

The network is `yunet/face_detection_yunet_2023mar.onnx` of the OpenCV Zoo, under the MIT licence
beside it, run by OpenCV. Each face is looked at twice. In the whole picture, at most
`LONGEST_SIDE` pixels long, YuNet finds faces between about 1/40 and 9/10 of that length. But of a
face less than some 160 pixels wide its five points hardly follow a head that is tilted: with one of
80 pixels tilted by 30 degrees the eyes seem tilted by 4. So every face is cut out, scaled to
`FACE_WIDTH` pixels and looked at again, which also removes most of what is no face.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.apps import opencv
from fer_jax.errors import PictureError

LONGEST_SIDE = 640  # pixels of the picture that is searched; YuNet was trained at that size
PATCH_SIDE = 320  # pixels of the patch that a face is looked at again in
FACE_WIDTH = 200  # pixels of the face in it
MIN_CANDIDATE_SCORE = 0.6  # in the whole picture
MIN_SCORE = 0.7  # in the patch; 95 % of FER2013's images that hold a face at all have over 0.8
MAX_OVERLAP = 0.3  # intersection over union of two faces' boxes, as in OpenCV's example

_MODEL = Path(__file__).parent / "yunet" / "face_detection_yunet_2023mar.onnx"
_MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


@dataclasses.dataclass(frozen=True)
class Found:
    """A face in a picture.

    Attributes:
      box: `[4]` float64, left, top, width and height in pixels. It may reach out of the picture.
      points: `[5, 2]` float64, x and y in pixels of the eye at the left of an upright face, the eye
        at the right, the tip of the nose, the mouth's corner at the left, that at the right.
      score: how sure the detector is, between `MIN_SCORE` and 1.
    """

    box: np.ndarray
    points: np.ndarray
    score: float


class Detector:
    """Finds faces in pictures."""

    def __init__(self):
        """Loads YuNet.

        Raises:
          ExtraError: if OpenCV is not installed.
          PictureError: if the network's file is damaged.
        """
        self._cv2: Any = opencv.load()
        model = np.frombuffer(read_model(), np.uint8)
        create = self._cv2.FaceDetectorYN.create
        none = np.empty(0, np.uint8)  # the format's second file; ONNX has but one
        size = (PATCH_SIDE, PATCH_SIDE)
        self._search = create("onnx", model, none, size, MIN_CANDIDATE_SCORE, MAX_OVERLAP)
        self._confirm = create("onnx", model, none, size, MIN_SCORE, MAX_OVERLAP)
        self._search_size = size

    def __call__(self, picture: np.ndarray) -> list[Found]:
        """Finds the faces in a picture.

        Args:
          picture: `[height, width, 3]` uint8, RGB.

        Returns:
          From left to right by the boxes' left edges; of equals the upper one first. Equal pictures
          give equal lists.
        """
        bgr = self._cv2.cvtColor(picture, self._cv2.COLOR_RGB2BGR)
        faces = [self._look_again(bgr, box) for box in self._candidates(bgr)]
        kept: list[Found] = []
        for face in sorted(filter(None, faces), key=lambda face: -face.score):
            if all(overlap(face.box, other.box) <= MAX_OVERLAP for other in kept):
                kept.append(face)
        return sorted(kept, key=lambda face: (face.box[0], face.box[1]))

    def _candidates(self, bgr: np.ndarray) -> list[np.ndarray]:
        """Returns the boxes, `[4]` float64 each, that may hold a face."""
        height, width = bgr.shape[:2]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != self._search_size:
            self._search.setInputSize(size)
            self._search_size = size
        small = bgr
        if scale < 1:
            small = self._cv2.resize(bgr, size, interpolation=self._cv2.INTER_AREA)
        factors = np.array([width / size[0], height / size[1]] * 2)
        return [row[:4] * factors for row in self._rows(self._search, small)]

    def _look_again(self, bgr: np.ndarray, box: np.ndarray) -> Found | None:
        """Looks at a candidate in its patch; returns the best face there, if it is one."""
        side = max(8, round(box[2] * PATCH_SIDE / FACE_WIDTH))
        left, top = (int(np.floor(box[i] + box[i + 2] / 2 - side / 2)) for i in (0, 1))
        scale = side / PATCH_SIDE
        rows = self._rows(self._confirm, self._patch(bgr, left, top, side))
        corner = np.array([left, top])
        best: Found | None = None
        for row in rows:
            found = Found(
                box=np.concatenate([row[:2] * scale + corner, row[2:4] * scale]),
                points=row[4:14].reshape(5, 2) * scale + corner,
                score=float(row[14]),
            )
            beside = overlap(found.box, box) <= MAX_OVERLAP  # a neighbour, found by itself
            if not beside and (best is None or found.score > best.score):
                best = found
        return best

    def _patch(self, bgr: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
        """Cuts out a square, `[PATCH_SIDE, PATCH_SIDE, 3]`; border pixels go on outside."""
        cv2 = self._cv2
        rows, columns = (
            np.clip(np.arange(start, start + side), 0, length - 1)
            for start, length in zip((top, left), bgr.shape[:2], strict=True)
        )
        patch = bgr[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        patch = patch.take(rows - rows[0], axis=0).take(columns - columns[0], axis=1)
        how = cv2.INTER_AREA if side > PATCH_SIDE else cv2.INTER_CUBIC
        return cv2.resize(patch, (PATCH_SIDE, PATCH_SIDE), interpolation=how)

    def _rows(self, detector: Any, bgr: np.ndarray) -> np.ndarray:
        """Returns `[n, 15]` float64: box, five points, score."""
        _, rows = detector.detect(bgr)
        return np.empty((0, 15)) if rows is None else np.asarray(rows, np.float64)


def read_model() -> bytes:
    """Returns YuNet's file, which was checked; raises PictureError if it is damaged."""
    try:
        data = _MODEL.read_bytes()
    except OSError as error:
        raise PictureError(
            f"{_MODEL} cannot be read: {error.strerror}; reinstall fer-jax"
        ) from error
    if hashlib.sha256(data).hexdigest() != _MODEL_SHA256:
        raise PictureError(f"{_MODEL} is damaged; reinstall fer-jax")
    return data


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the intersection over the union of two boxes."""
    corner = np.maximum(a[:2], b[:2])
    sides = np.maximum(np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - corner, 0)
    common = sides[0] * sides[1]
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))
