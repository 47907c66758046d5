"""Drawn faces: small grey pictures that show the seven expressions, in plain NumPy.

A face is a set of shapes (head, hair, eyes, brows, nose, mouth, folds), each given by a signed
distance in pixels. An expression moves them the way its facial action units do; the units of each
expression are the prototypes of Ekman & Friesen, *Facial Action Coding System* (1978), as tabled in
the *Investigator's Guide* of Ekman, Friesen & Hager (2002):

=========  ====================  ================================================================
Anger      4 + 5 + 7 + 23        brows lowered, lids raised and tight, lips tight (or apart: 25)
Disgust    9 + 10 + 16           nose wrinkled, upper lip raised, lower lip lowered (15, 25)
Fear       1 + 2 + 4 + 5 + 20    brows raised and drawn together, eyes wide, lips stretched (25, 26)
Happiness  6 + 12                cheeks and lip corners raised (lips apart: 25)
Sadness    1 + 4 + 15            inner brows raised, lip corners lowered
Surprise   1 + 2 + 5 + 26        brows and lids raised, jaw dropped
Neutral    none
=========  ====================  ================================================================

Numbers in brackets are units that only some of an expression's faces show.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

SIDE = 48  # pixels
COUNTS = {"train": 6000, "valid": 1000, "test": 1000}  # images
_CHUNK = 64  # images drawn at once, so that the arrays stay in cache

# Per label, in the order of fer2013's labels: what share of each unit's full strength a full
# expression shows, and the units that come with some probability.
_PROTOTYPES: tuple[dict[int, float], ...] = (
    {4: 1.0, 5: 0.4, 7: 0.7, 23: 1.0},
    {9: 1.0, 10: 1.0, 16: 0.7},
    {1: 1.0, 2: 0.5, 4: 0.6, 5: 1.0, 20: 1.0},
    {6: 1.0, 12: 1.0},
    {1: 1.0, 4: 0.6, 15: 1.0},
    {1: 1.0, 2: 1.0, 5: 1.0, 26: 1.0},
    {},
)
_SOMETIMES: tuple[dict[int, float], ...] = (  # unit: probability
    {25: 0.3},
    {15: 0.6, 25: 0.4},
    {25: 0.6, 26: 0.35},
    {25: 0.6},
    {},
    {},
    {},
)


@dataclasses.dataclass(frozen=True)
class _Measure:
    """One measure of a face: its mean, how far individuals lie from it, what each unit adds."""

    mean: float
    spread: float
    units: dict[int, float] = dataclasses.field(default_factory=dict)


# Lengths in pixels of a face at scale 1, 48 pixels high; y points down, 0 is the face's centre.
_MEASURES = {
    "brow_inner_y": _Measure(-9.0, 0.9, {1: -3.0, 4: 2.4, 9: 1.6}),
    "brow_outer_y": _Measure(-9.0, 0.9, {2: -3.2, 4: 0.8, 9: 0.4, 1: -0.5}),
    "brow_arch": _Measure(0.9, 0.5, {2: 0.8}),
    "brow_x": _Measure(7.6, 0.5, {4: -0.9}),
    "brow_half_width": _Measure(4.4, 0.5),
    "brow_half_height": _Measure(0.9, 0.3),
    "eye_x": _Measure(7.6, 0.6),
    "eye_y": _Measure(-4.0, 0.4),
    "eye_half_width": _Measure(3.6, 0.4),
    "eye_up": _Measure(1.9, 0.35, {5: 1.5, 9: -0.5, 7: -0.3, 6: -0.3}),
    "eye_down": _Measure(1.3, 0.25, {5: 0.4, 6: -0.9, 7: -0.8, 9: -0.6}),
    "iris": _Measure(1.6, 0.15),
    "nose_y": _Measure(4.2, 0.5, {9: -1.2, 10: -0.4}),
    "nose_half_width": _Measure(2.6, 0.4, {9: 0.7}),
    "mouth_y": _Measure(11.0, 0.6, {26: 1.0, 9: -0.4}),
    "mouth_half_width": _Measure(5.8, 0.6, {12: 1.9, 15: -0.3, 20: 1.9, 23: -1.0, 26: -1.4}),
    "corner_y": _Measure(0.0, 0.5, {12: -3.6, 15: 3.2, 20: 0.9, 10: 0.6}),
    "open_up": _Measure(0.0, 0.0, {10: 0.9, 25: 0.6, 26: 1.6}),
    "open_down": _Measure(0.0, 0.0, {16: 0.8, 25: 1.6, 26: 4.0}),
    "lip_up": _Measure(1.0, 0.25, {23: -0.6}),
    "lip_down": _Measure(1.4, 0.3, {23: -0.7, 16: 0.3}),
    "jaw": _Measure(0.0, 0.0, {26: 1.8}),
    "frown": _Measure(0.0, 0.0, {4: 0.8}),  # strength of lines, 0 to 1
    "nose_wrinkle": _Measure(0.0, 0.0, {9: 1.0}),
    "cheek_fold": _Measure(0.15, 0.15, {12: 0.7, 9: 0.6, 10: 0.5}),
    "crows_feet": _Measure(0.0, 0.0, {6: 0.8}),
}


def draw_faces(labels: np.ndarray, seed: int = 0, first: int = 0) -> np.ndarray:
    """Draws one face per label.

    Besides the expression, faces differ in place, scale, in-plane rotation, turn of the head,
    shape, resting brows, eyes and mouth, skin, hair, glasses, background, lighting, blur and noise,
    and in how strongly they show the expression. Image `i` is a function of `seed`, `first + i` and
    `labels[i]` alone.

    Args:
      labels: `[n]` integers in 0..6: Anger, Disgust, Fear, Happiness, Sadness, Surprise, Neutral.
      seed: any non-negative integer.
      first: index of the first image.

    Returns:
      Images `[n, 48, 48, 1]` uint8.

    Raises:
      ValueError: if `labels` is not a vector of integers in 0..6.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be `[n]` integers, not {labels.dtype}{list(labels.shape)}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(_PROTOTYPES):
        raise ValueError(f"labels range from {labels.min()} to {labels.max()}; allowed are 0 to 6")
    images = np.empty((len(labels), SIDE, SIDE, 1), np.uint8)
    for start in range(0, len(labels), _CHUNK):
        chunk = labels[start : start + _CHUNK]
        images[start : start + _CHUNK, ..., 0] = _draw(chunk, seed, first + start)
    return images


def draw_splits(
    counts: Mapping[str, int] = COUNTS, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws splits whose labels are balanced and in random order; no face is in two of them.

    Args:
      counts: split -> number of images.
      seed: any non-negative integer.

    Returns:
      Split -> images `[n, 48, 48, 1]` uint8, labels `[n]` uint8 in 0..6, ids `[n]` bytes.
    """
    splits, first = {}, 0
    for split, count in counts.items():
        labels = (np.arange(count) % len(_PROTOTYPES)).astype(np.uint8)
        labels = np.random.default_rng((seed, first, count)).permutation(labels)
        ids = np.array([f"{split}_{i:05d}" for i in range(count)], "S")
        splits[split] = (draw_faces(labels, seed, first), labels, ids)
        first += count
    return splits


class _Random:
    """Independent random numbers for each image of a chunk, handed out one variable at a time."""

    def __init__(self, seed: int, indices: range):
        generators = [np.random.default_rng((seed, index)) for index in indices]
        self._uniform = np.stack([g.random(160, np.float32) for g in generators], axis=1)
        self.noise = np.stack([g.standard_normal((SIDE, SIDE), np.float32) for g in generators])
        self._used = 0

    def uniform(self, low: float, high: float) -> np.ndarray:
        """Returns `[n, 1, 1]` float32, uniform between `low` and `high`."""
        self._used += 1
        return (low + (high - low) * self._uniform[self._used - 1, :, None, None]).astype(
            np.float32
        )

    def chance(self, probability: float | np.ndarray) -> np.ndarray:
        """Returns `[n, 1, 1]` float32, 1 with the probability given and 0 otherwise."""
        return (self.uniform(0, 1) < probability).astype(np.float32)


def _units(labels: np.ndarray, random: _Random) -> dict[int, np.ndarray]:
    """Returns the strength of every action unit, `[n, 1, 1]` float32 from 0 to about 1."""
    strength = random.uniform(0.65, 1.1)
    names = sorted({unit for table in _PROTOTYPES + _SOMETIMES for unit in table})
    units = {}
    for unit in names:
        shown = np.array([table.get(unit, 0.0) for table in _PROTOTYPES], np.float32)[labels]
        chance = np.array([table.get(unit, 0.0) for table in _SOMETIMES], np.float32)[labels]
        present = np.maximum(shown[:, None, None], random.chance(chance[:, None, None]))
        units[unit] = strength * present * random.uniform(0.75, 1.1)
    return units


def _measures(labels: np.ndarray, random: _Random) -> dict[str, np.ndarray]:
    """Returns every measure of the faces, `[n, 1, 1]` float32."""
    units = _units(labels, random)
    measures = {}
    for name, measure in _MEASURES.items():
        value = measure.mean + random.uniform(-measure.spread, measure.spread)
        for unit, full in measure.units.items():
            value = value + np.float32(full) * units[unit]
        measures[name] = value
    for name in ("eye_up", "eye_down", "lip_up", "lip_down"):
        measures[name] = np.maximum(measures[name], np.float32(0.3))
    return measures


def _ellipse(x, y, half_width, half_height):
    """Approximate signed distance to an axis-parallel ellipse at the origin."""
    radius = np.sqrt(np.square(x / half_width) + np.square(y / half_height))
    return (radius - 1) * np.minimum(half_width, half_height)


def _lens(t, y, up, down):
    """Approximate signed distance to what lies between two parabolas that meet at t = -1 and 1."""
    bulge = 1 - np.square(t)
    return np.maximum(-up * bulge - y, y - down * bulge)


def _stroke(x, y, x0, y0, x1, y1, half_width):
    """Signed distance to a straight stroke with round ends."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.sqrt(np.square(x - x0 - t * dx) + np.square(y - y0 - t * dy)) - half_width


def _draw(labels: np.ndarray, seed: int, first: int) -> np.ndarray:
    """Draws a chunk of faces, `[n, 48, 48]` uint8; see `draw_faces`."""
    random = _Random(seed, range(first, first + len(labels)))
    m = _measures(labels, random)
    uniform, chance = random.uniform, random.chance

    # The head's own coordinates, in pixels at scale 1.
    scale = uniform(0.9, 1.12)
    angle = np.deg2rad(uniform(-10, 10))
    row, column = np.mgrid[:SIDE, :SIDE].astype(np.float32) - np.float32((SIDE - 1) / 2)
    column, row = column - uniform(-2.5, 2.5), row - uniform(-2.5, 2.5)
    x = (np.cos(angle) * column + np.sin(angle) * row) / scale
    y = (np.cos(angle) * row - np.sin(angle) * column) / scale

    blur = uniform(1.0, 2.0)  # width of an edge, pixels
    canvas = np.zeros((len(labels), SIDE, SIDE), np.float32)

    def paint(distance, colour, opacity: np.ndarray | float = 1.0):
        cover = np.clip(0.5 - distance * (scale / blur), 0, 1)
        cover *= opacity
        np.add(canvas, cover * (colour - canvas), out=canvas)

    # Colours: 0 black, 1 white.
    skin = uniform(0.45, 0.85)
    dark_hair = uniform(0.05, 0.3)
    hair = np.where(chance(0.25) > 0, uniform(0.5, 0.95), dark_hair)
    brow = skin * uniform(0.15, 0.6)
    line = skin * uniform(0.45, 0.65)
    lips = skin * uniform(0.6, 0.9)

    # Background, hair behind the head, head.
    direction = uniform(0, 2 * np.pi)
    slope = (np.cos(direction) * column + np.sin(direction) * row) / SIDE
    canvas += uniform(0.05, 0.95) + uniform(0, 0.5) * slope
    half_width, half_height = uniform(14.5, 17.5), uniform(19.5, 22.0)
    hair_width = half_width + uniform(0.3, 2.5)
    paint(_ellipse(x, y + 3, hair_width, half_height), hair, chance(0.85))
    jaw_width = half_width - uniform(0.0, 0.15) * np.maximum(y, 0)
    head = _ellipse(x, y, jaw_width, half_height + m["jaw"] * (y > 0))
    paint(head, skin)
    light = uniform(-0.3, 0.3)
    canvas *= 1 - np.clip(0.5 - head, 0, 1) * light * x / half_width  # light from one side
    hairline = -uniform(12.5, 17.0) + uniform(-0.02, 0.06) * np.square(x) + uniform(-0.2, 0.2) * x
    paint(np.maximum(head - 1, y - hairline), hair, chance(0.9))

    # Inner features turn with the head; both halves are drawn at once through |x|.
    x = x - uniform(-1.5, 1.5)
    side = np.abs(x)

    t = (side - m["eye_x"]) / m["eye_half_width"]
    eye_y = y - m["eye_y"]
    eye = _lens(t, eye_y, m["eye_up"], m["eye_down"])
    paint(np.abs(t) * 3 - 4.5 + np.abs(eye_y), skin * 0.75, uniform(0.0, 0.5))  # socket
    paint(eye, np.minimum(skin * 1.15 + 0.15, 1))
    gaze_x, gaze_y = uniform(-1.0, 1.0), uniform(-0.4, 0.4)
    middle = m["eye_x"] + np.sign(x) * gaze_x
    iris = np.sqrt(np.square(side - middle) + np.square(eye_y - gaze_y)) - m["iris"]
    paint(np.maximum(iris, eye), uniform(0.02, 0.3))
    lid = np.abs(eye_y + m["eye_up"] * (1 - np.square(t))) - 0.35
    paint(np.maximum(lid, (np.abs(t) - 1.1) * 3), skin * 0.3)
    corner = m["eye_x"] + m["eye_half_width"]
    for end in (-1.6, 1.6):
        foot = _stroke(side, eye_y, corner + 1, 0.3 * end, corner + 3.2, end, 0.3)
        paint(foot, line, m["crows_feet"])

    t = (side - m["brow_x"]) / m["brow_half_width"]
    middle = 0.5 * (m["brow_inner_y"] * (1 - t) + m["brow_outer_y"] * (1 + t))
    middle = middle - m["brow_arch"] * (1 - np.square(t))
    band = np.abs(y - middle) - m["brow_half_height"] * (1 - 0.3 * t)
    paint(np.maximum(band, (np.abs(t) - 1) * m["brow_half_width"]), brow)
    frown_x = np.maximum(m["brow_x"] - m["brow_half_width"] - 1.2, 0.8)
    frown = _stroke(side, y, frown_x, m["brow_inner_y"] - 1, frown_x, m["brow_inner_y"] + 2, 0.3)
    paint(frown, line, m["frown"])

    nose = m["nose_y"]
    base = np.abs(y - nose - 1.2 + 0.12 * np.square(side)) - 0.5
    paint(np.maximum(base, side - m["nose_half_width"]), line)
    bridge = _stroke(x, y, 1.3, -2.0, m["nose_half_width"], nose, 0.4)
    paint(bridge, line, uniform(0.0, 0.6))
    for height in (-4.2, -2.2):
        wrinkle = np.abs(y - height + 0.25 * side) - 0.35
        paint(np.maximum(wrinkle, side - 2.6), line, m["nose_wrinkle"])
    fold_top, fold_end = m["nose_half_width"] + 1.0, m["mouth_half_width"] + 1.6
    fold_low = m["mouth_y"] - 1.5 + np.minimum(0.6 * m["corner_y"], 0)  # above the mouth's corner
    fold = _stroke(side, y, fold_top, nose - 0.5, fold_end, fold_low, 0.35)
    paint(fold, line, np.clip(m["cheek_fold"], 0, 1))

    t = x / m["mouth_half_width"]
    mouth_y = y - m["mouth_y"] - m["corner_y"] * (np.square(t) - 0.4)
    up, down = m["open_up"], m["open_down"]
    lip = _lens(t * 0.95, mouth_y, up + m["lip_up"], down + m["lip_down"])
    paint(lip, lips)
    inside = _lens(t, mouth_y, up + 0.35, down + 0.35)
    paint(inside, skin * uniform(0.1, 0.35))
    teeth = np.maximum(inside + 0.4, mouth_y - uniform(0.3, 1.2))
    paint(teeth, np.minimum(skin * 0.5 + 0.5, 1), (up + down > 1.2) * chance(0.8))

    rim = np.abs(_ellipse(side - m["eye_x"], eye_y - 0.4, uniform(4.6, 5.6), uniform(3.6, 4.8)))
    glasses = chance(0.15)
    frame = uniform(0.05, 0.4)
    paint(rim - 0.35, frame, glasses)
    paint(np.maximum(np.abs(eye_y + 0.5) - 0.3, side - m["eye_x"] + 5), frame, glasses)

    direction = uniform(0, 2 * np.pi)
    slope = (np.cos(direction) * column + np.sin(direction) * row) / SIDE
    canvas *= 1 + uniform(0, 0.5) * slope
    canvas *= uniform(0.75, 1.1)
    canvas += uniform(0.005, 0.04) * random.noise
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
