"""Draws what was found into a picture: box, label, and seven bars as in the paper's figures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_jax.apps.predictor import Face

# Of Okabe & Ito 2008, told apart by the colour-blind; in the order of the labels.
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#F0E442", "#56B4E9", "#E69F00", "#BBBBBB")
MIN_SIDE = 480  # pixels: a smaller photograph is shown enlarged, so that its words can be read

_MIN_ROW = 11  # pixels a bar and its name need

_Box = tuple[float, float, float, float]  # left, top, right, bottom


def enlarge(picture: np.ndarray, faces: Sequence[Face]) -> tuple[np.ndarray, list[Face]]:
    """Enlarges a small picture and what was found in it by a whole number.

    Args:
      picture: `[height, width, 3]` uint8.
      faces: in it.

    Returns:
      The picture, its longest side at least `MIN_SIDE`, and the faces in it.
    """
    factor = -(-MIN_SIDE // max(picture.shape[:2]))
    if factor <= 1:
        return picture, list(faces)
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return large, [face.scaled(factor) for face in faces]


def draw(
    picture: np.ndarray,
    faces: Sequence[Face],
    classes: Sequence[str],
    probabilities: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Draws the faces into a copy of a picture.

    Each has its box and, above it, the most probable class. The bars of all classes stand beside
    the box, on the first side (right, left, below, above) where they fit into the picture and cover
    neither a face nor another's bars, at their full or a smaller size; where none does, they are
    left out.

    Args:
      picture: `[height, width, 3]` uint8, RGB.
      faces: in it.
      classes: their names, in the order of the labels.
      probabilities: `[classes]` of each face, shown instead of its own.

    Returns:
      `[height, width, 3]` uint8.
    """
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image, "RGBA")
    taken = [_corners(face) for face in faces]
    for i, face in enumerate(faces):
        shown = face.probabilities if probabilities is None else probabilities[i]
        best = int(np.argmax(shown))
        left, top, right, bottom = _corners(face)
        line = max(2, round((bottom - top) / 80))
        pen.rectangle((left, top, right, bottom), outline=COLOURS[best % 7], width=line)
        _label(pen, image.size, _corners(face), f"{classes[best]} {shown[best]:.0%}", best)
        place = _place_of_bars(_corners(face), image.size, len(classes), taken)
        if place:
            taken.append(place)
            _bars(pen, place, classes, shown)
    return np.asarray(image)


def _corners(face: Face) -> _Box:
    left, top, width, height = (float(value) for value in face.box)
    return left, top, left + width, top + height


def _label(pen: ImageDraw.ImageDraw, size: tuple[int, int], box: _Box, text: str, best: int):
    left, top, _, bottom = box
    height = min(max((bottom - top) / 8, 12), 48)
    font = ImageFont.load_default(height * 0.8)
    width = pen.textlength(text, font) + height / 3
    x = min(max(left, 0), max(size[0] - width, 0))
    y = top - height if top >= height else min(max(bottom, 0), size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=COLOURS[best % 7])
    pen.text((x + height / 6, y + height / 2), text, "black", font, anchor="lm")


def _place_of_bars(
    box: _Box, size: tuple[int, int], rows: int, taken: Sequence[_Box]
) -> _Box | None:
    left, top, right, bottom = box
    full = min(max((bottom - top) / rows, _MIN_ROW), 28)
    for row in (full, max(full * 0.6, _MIN_ROW)):
        width, height, gap = row * 9, row * rows, row / 3
        beside = min(max(top, 0), max(size[1] - height, 0))
        label = max((bottom - top) / 8, 12)
        for x, y in (
            (right + gap, beside),
            (left - gap - width, beside),
            (left, bottom + label),
            (left, top - label - height),
        ):
            place = (x, y, x + width, y + height)
            inside = x >= 0 and y >= 0 and place[2] <= size[0] and place[3] <= size[1]
            if inside and not any(_touch(place, other) for other in taken):
                return place
    return None


def _touch(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bars(pen: ImageDraw.ImageDraw, place: _Box, classes: Sequence[str], shown: np.ndarray):
    left, top, right, bottom = place
    row = (bottom - top) / len(classes)
    font = ImageFont.load_default(row * 0.75)
    pen.rectangle(place, fill=(0, 0, 0, 160))
    start = left + row * 4.6
    for k, (name, p) in enumerate(zip(classes, shown, strict=True)):
        y = top + k * row
        pen.text((left + row / 4, y + row / 2), name, "white", font, anchor="lm")
        end = start + (right - row / 4 - start) * float(p)
        pen.rectangle((start, y + row * 0.15, max(end, start + 1), y + row * 0.85), COLOURS[k % 7])
