"""Averages of predictions: over views of an image (test-time augmentation) and over networks."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax.predict import Predict

SHIFT = 3  # pixels, of `shifts`
CROP = 40  # pixels a side, of `ten_crop`: Pramerdorfer & Kampel 2016 train and test on such crops


def views(images: np.ndarray, name: str) -> Iterator[np.ndarray]:
    """Shows images in several ways.

    * `none`: as they are.
    * `flip`: as they are and mirrored.
    * `shifts`: moved by -`SHIFT`, 0 and `SHIFT` pixels, down and to the right, the edge repeated;
      each also mirrored: 18 views.
    * `ten_crop`: the four corners and the middle (Krizhevsky et al. 2012, section 4.1), `CROP`
      pixels a side, enlarged bilinearly to the image's size; each also mirrored: 10 views.

    Args:
      images: `[n, height, width, 1]` uint8.
      name: one of `fer_jax.config.VIEWS`.

    Yields:
      Arrays like `images`.
    """
    for view in _upright(images, name):
        yield view
        if name != "none":
            yield view[:, :, ::-1]


def _upright(images: np.ndarray, name: str) -> Iterator[np.ndarray]:
    height, width = images.shape[1:3]
    if name in ("none", "flip"):
        yield images
    elif name == "shifts":
        padding = [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)]
        padded = np.pad(images, padding, mode="edge")
        for top in (0, SHIFT, 2 * SHIFT):
            for left in (0, SHIFT, 2 * SHIFT):
                yield padded[:, top : top + height, left : left + width]
    else:
        bottom, right = height - CROP, width - CROP
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        for top, left in corners:
            yield enlarge(images[:, top : top + CROP, left : left + CROP], height, width)


def enlarge(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarges `[n, h, w, 1]` uint8 bilinearly, pixel centres at halves, edges repeated."""
    rows = _resampling(images.shape[1], height)
    columns = _resampling(images.shape[2], width)
    enlarged = rows @ images[..., 0].astype(np.float32) @ columns.T
    return np.rint(enlarged).astype(np.uint8)[..., None]


def _resampling(size: int, new_size: int) -> np.ndarray:
    """Returns `[new_size, size]` float32 that maps samples to a longer row of samples."""
    places = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    distance = np.abs(places[:, None] - np.arange(size)[None, :])
    return np.maximum(1 - distance, 0).astype(np.float32)


def predict_views(
    predict: Predict, variables: Any, images: np.ndarray, name: str, how: str
) -> np.ndarray:
    """Predicts images from several views of each.

    Args:
      predict: from :func:`fer_jax.predict.make_predict`.
      variables: the network's.
      images: `[n, height, width, 1]` uint8.
      name: one of `fer_jax.config.VIEWS`.
      how: one of `fer_jax.config.AVERAGES`.

    Returns:
      Log-probabilities `[n, classes]` float32.
    """
    return average([predict(variables, view) for view in views(images, name)], how)


def average(log_probs: list[np.ndarray], how: str) -> np.ndarray:
    """Averages predictions for the same images.

    Args:
      log_probs: arrays `[n, classes]`, natural logarithms of probabilities.
      how: `probabilities`: their mean; `logits`: the mean of the logits, normalised, which is the
        probabilities' geometric mean.

    Returns:
      Log-probabilities `[n, classes]` float32.
    """
    if len(log_probs) == 1:
        return log_probs[0]
    stacked = np.asarray(log_probs, np.float64)
    mean = (np.logaddexp.reduce if how == "probabilities" else np.mean)(stacked, axis=0)
    return (mean - np.logaddexp.reduce(mean, axis=-1, keepdims=True)).astype(np.float32)
