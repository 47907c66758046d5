"""From a face in a picture to the network's input: the one way, of photographs and videos alike.

A picture that is a face already goes through `fer_jax.data.pictures.fit`, as training's do.

Three steps, in this order, in float64 and without trigonometry, so that another language can repeat
them to the same uint8 values:

1. **Grey.** Luminance by ITU-R BT.601 in integers, as Pillow computes it: :func:`luminance`.
2. **Square.** Which part of the picture, turned how far: :func:`face_square`.
3. **Scale.** The square's 48x48 cells, each the mean of k x k points spread evenly over it, where k
   is the square's side over 48, rounded up; each point interpolated linearly between the four
   nearest pixel centres: :func:`sample`. Then rounded to uint8, halves up, as is what lies within
   1e-9 below a half.

Pixel (i, j) covers the unit square from (j, i) to (j + 1, i + 1), so its centre is at halves. x
points to the right, y down. Outside of the picture its border pixels go on.
"""

import dataclasses

import numpy as np
from PIL import Image

from fer_jax.labels import SIDE

# The framing of FER2013: medians over the faces that YuNet finds in 2,500 training images, enlarged
# so that a face is as wide as `detect` makes it. Points in pixels of a 48x48 image, made symmetric
# about the vertical through the box's centre, which is the image's: eye at the left, eye at the
# right, tip of the nose, corner of the mouth at the left, at the right.
FACE_POINTS = np.array([[15.1, 18.3], [32.9, 18.3], [24.0, 28.7], [16.7, 36.7], [31.3, 36.7]])
# Of a face in FER2013 the box's height varies least, by 16 %, and its centre by 2.6 and 2.0 pixels;
# its width varies by 17 %, the distance of the eyes by 24 %, which turning the head changes.
BOX_HEIGHT = 50.7  # pixels of a 48x48 image

_POINTS_AT_A_TIME = 1 << 14  # they stay in cache, however large the picture is
_HALF = 0.5 + 1e-9  # so that a mean that is a half rounds up whatever its sum's last bit


@dataclasses.dataclass(frozen=True)
class Square:
    """A square in a picture, in pixels.

    Attributes:
      x: of its centre.
      y: of its centre.
      side: its length.
      cos: its upper edge points along (cos, sin), a unit vector.
      sin: see `cos`; positive turns clockwise, as seen in the picture.
    """

    x: float
    y: float
    side: float
    cos: float = 1.0
    sin: float = 0.0


def luminance(picture: np.ndarray) -> np.ndarray:
    """Returns a picture's grey values.

    Args:
      picture: `[..., width, 3]` uint8, RGB.

    Returns:
      `[..., width]` uint8: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) as
      (19595 R + 38470 G + 7471 B + 32768) >> 16. Equal channels keep their value.
    """
    if not picture.size:
        return np.empty(picture.shape[:-1], np.uint8)
    rows = Image.fromarray(picture.reshape(-1, *picture.shape[-2:]))
    return np.asarray(rows.convert("L")).reshape(picture.shape[:-1])


def face_square(box: np.ndarray, points: np.ndarray) -> Square:
    """Places a face as FER2013's images place theirs.

    Centre and side come from the box, whose height is :data:`BOX_HEIGHT` 48ths of the side. The
    square is turned as the similarity transform turns that maps :data:`FACE_POINTS` onto the points
    with the least squared error (Umeyama 1991, in two dimensions).

    Args:
      box: `[4]`, left, top, width and height in pixels.
      points: `[5, 2]`, x and y in pixels, in the order of :data:`FACE_POINTS`.

    Returns:
      The square.
    """
    left, top, width, height = (float(value) for value in box)
    model = FACE_POINTS - FACE_POINTS.mean(axis=0)
    along = float((model * points).sum())
    across = float((model[:, 0] * points[:, 1] - model[:, 1] * points[:, 0]).sum())
    length = float(np.sqrt(along * along + across * across))
    cos, sin = (along / length, across / length) if length > 1e-6 else (1.0, 0.0)
    return Square(left + width / 2, top + height / 2, SIDE / BOX_HEIGHT * height, cos, sin)


def centre_square(height: int, width: int) -> Square:
    """Returns the largest upright square in the middle of a picture."""
    return Square(width / 2, height / 2, min(height, width))


def crop(grey: np.ndarray, square: Square) -> np.ndarray:
    """Returns a square of a picture as the network takes it.

    Args:
      grey: `[height, width]` uint8.
      square: which part of it. That of a whole 48x48 image gives its pixels unchanged.

    Returns:
      `[48, 48]` uint8.
    """
    return np.floor(sample(grey, square, SIDE) + _HALF).astype(np.uint8)


def sample(grey: np.ndarray, square: Square, cells: int) -> np.ndarray:
    """Averages a picture over the cells of a square; see the module.

    Args:
      grey: `[height, width]`, any real numbers.
      square: which part of it.
      cells: how many along each side.

    Returns:
      `[cells, cells]` float64.
    """
    k = max(1, int(np.ceil(square.side / cells - 1e-9)))  # 2 for a square twice as large, not 3
    points = cells * k
    offsets = (np.arange(points) + 0.5 - points / 2) * (square.side / points)
    grey = np.ascontiguousarray(grey)
    means = np.empty((cells, cells))
    rows = max(1, _POINTS_AT_A_TIME // (points * k))
    for first in range(0, cells, rows):
        down = offsets[first * k : (first + rows) * k, None]
        x = square.x + (offsets * square.cos - down * square.sin)
        y = square.y + (offsets * square.sin + down * square.cos)
        values = interpolate(grey, x, y)
        means[first : first + rows] = values.reshape(-1, k, cells, k).sum(axis=(1, 3)) / (k * k)
    return means


def interpolate(grey: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolates linearly between pixel centres.

    Args:
      grey: `[height, width]`, any real numbers.
      x: positions in pixels, of any shape; the first pixel's centre is at 0.5.
      y: likewise, of the same shape.

    Returns:
      float64 of that shape.
    """
    height, width = grey.shape
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x), np.floor(y)
    right_share, lower_share = x - left, y - top
    column, row = left.astype(np.intp), top.astype(np.intp)
    columns = [np.clip(column + i, 0, width - 1) for i in (0, 1)]
    rows = [np.clip(row + i, 0, height - 1) * width for i in (0, 1)]
    pixels = grey.reshape(-1)  # found by one index in half the time that two take

    def along(row: np.ndarray) -> np.ndarray:
        before, behind = (pixels[row + column].astype(np.float64) for column in columns)
        return before + (behind - before) * right_share

    upper, lower = along(rows[0]), along(rows[1])
    return upper + (lower - upper) * lower_share
