"""Where a network looks: which parts of a face a prediction rests on.

The map is measured by hiding parts, one after another, and asking the network again (Zeiler &
Fergus 2014, *Visualizing and understanding convolutional networks*, section 4.2), with masks that
have soft edges as in Petsiuk, Das & Saenko 2018 (*RISE*), on a regular grid instead of at random.

Not Grad-CAM: its map has the few cells of the last convolution (3x3 in Architecture 01, 2x2 in
Architecture 03), depends on which layer is chosen, and needs gradients. Hiding asks the function
that predicts, whatever is inside, in a unit with a meaning, and cannot fail to depend on the
weights as some gradient maps do (Adebayo et al. 2018, *Sanity checks for saliency maps*). It costs
170 predictions a face.
"""

from collections.abc import Callable

import numpy as np

from fer_jax.apps.crop import interpolate
from fer_jax.apps.predictor import Face
from fer_jax.labels import SIDE

STEP = 4  # pixels between the centres of neighbouring masks
REACH = 8  # pixels from a mask's centre, where all is hidden, to where nothing is


def masks() -> np.ndarray:
    """Returns `[169, 48, 48]` float64 in [0, 1]: how far each mask hides each pixel.

    Pyramids centred on a grid of 13 x 13 points, from one edge of the image to the other.
    """
    pixels = np.arange(SIDE) + 0.5
    centres = np.arange(0, SIDE + 1, STEP)
    lines = np.maximum(0, 1 - np.abs(pixels - centres[:, None]) / REACH)
    return (lines[:, None, :, None] * lines[None, :, None, :]).reshape(-1, SIDE, SIDE)


def saliency(
    predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, label: int | None = None
) -> np.ndarray:
    """Measures how much each part of an image speaks for a class.

    Args:
      predict: images `[n, 48, 48]` uint8 -> probabilities `[n, classes]`.
      image: `[48, 48]` uint8.
      label: of the class; None for the most probable one.

    Returns:
      `[48, 48]` float64: by how many nats the logarithm of the class's probability falls when what
      is around a pixel is replaced by the image's mean grey, averaged over the masks that cover it.
      Negative where hiding makes the class more probable.
    """
    hide = masks()
    hidden = image + hide * (image.mean() - image)
    images = np.concatenate([image[None], np.floor(hidden + 0.5).astype(np.uint8)])
    log_probs = np.log(np.maximum(predict(images).astype(np.float64), 1e-12))
    label = int(log_probs[0].argmax()) if label is None else label
    falls = log_probs[0, label] - log_probs[1:, label]
    return np.tensordot(falls, hide, 1) / hide.sum(axis=0)


def overlay(picture: np.ndarray, face: Face, heat: np.ndarray) -> np.ndarray:
    """Lays a face's map over the picture: red speaks for the class, blue against it.

    Args:
      picture: `[height, width, 3]` uint8.
      face: whose square the map covers.
      heat: `[48, 48]`, of :func:`saliency`. Its largest absolute value is shown half opaque.

    Returns:
      `[height, width, 3]` uint8, a new picture.
    """
    square = face.square
    reach = square.side * (abs(square.cos) + abs(square.sin)) / 2
    height, width = picture.shape[:2]
    rows = np.arange(max(0, int(square.y - reach)), min(height, int(square.y + reach) + 1))
    columns = np.arange(max(0, int(square.x - reach)), min(width, int(square.x + reach) + 1))
    right, down = columns + 0.5 - square.x, rows[:, None] + 0.5 - square.y
    x = (right * square.cos + down * square.sin) / square.side + 0.5
    y = (down * square.cos - right * square.sin) / square.side + 0.5
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    strength = interpolate(heat / max(float(np.abs(heat).max()), 1e-12), x * SIDE, y * SIDE)
    colour = np.where(strength[..., None] > 0, (255, 0, 0), (0, 0, 255))
    opacity = 0.5 * (np.abs(strength) * inside)[..., None]
    result = picture.copy()
    part = np.ix_(rows, columns)
    result[part] = np.round(picture[part] * (1 - opacity) + colour * opacity).astype(np.uint8)
    return result
