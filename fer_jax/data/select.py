"""Which training images a run is fitted on: pure functions of pixels and labels."""

import collections
import hashlib
from collections.abc import Iterator

import numpy as np

from fer_jax.config import Config
from fer_jax.data.dataset import Split
from fer_jax.errors import ConfigError


def take(split: Split, keep: np.ndarray) -> Split:
    """Returns the images of a split at the indices `keep`, `[k]`, in that order."""
    return Split(
        images=np.asarray(split.images)[keep],
        labels=split.labels[keep],
        ids=split.ids[keep],
        in_train=split.in_train[keep],
        soft=None if split.soft is None else split.soft[keep],
    )


def labels_of(split: Split) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Returns what a step takes as labels: `[n]` int32, or these and the soft labels."""
    labels = np.asarray(split.labels, np.int32)
    return labels if split.soft is None else (labels, split.soft)


def contradicting(split: Split) -> np.ndarray:
    """Marks images that have a copy, equal in every pixel, with another label.

    Args:
      split: its images and labels are compared.

    Returns:
      `[n]` bool; all copies are marked, since none of their labels is known to be right.
    """
    digests = list(_digests(split))
    labels = collections.defaultdict(set)
    for digest, label in zip(digests, split.labels, strict=True):
        labels[digest].add(int(label))
    return np.array([len(labels[digest]) > 1 for digest in digests], bool)


def parts(split: Split, count: int) -> np.ndarray:
    """Parts images for cross-fitting, by a hash of their pixels: copies stay together.

    Args:
      split: whose images are parted; the result does not depend on which others there are.
      count: number of parts, of about equal size.

    Returns:
      `[n]` int32 in 0 to `count - 1`.
    """
    return np.array([int.from_bytes(d[:8], "big") % count for d in _digests(split)], np.int32)


def _digests(split: Split) -> Iterator[bytes]:
    return (hashlib.sha256(np.asarray(image).tobytes()).digest() for image in split.images)


def parse_fold(fold: str) -> tuple[int, int]:
    """Returns i and k of `i/k`.

    Raises:
      ConfigError: unless 0 <= i < k and k is at least 2.
    """
    try:
        index, count = map(int, fold.split("/"))
        if not 0 <= index < count or count < 2:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"config.train.fold is {fold!r}; it must be i/k with 0 <= i < k and k at least 2"
        ) from None
    return index, count


def chosen(split: Split, config: Config) -> np.ndarray:
    """Returns the images that a run is fitted on.

    Args:
      split: the whole train split.
      config: `data.drop_contradicting` and `train.fold` are read: without images that contradict
        their copies, and without the i-th of k parts.

    Returns:
      `[k]` indices, ascending.
    """
    keep = np.ones(len(split.labels), bool)
    if config.data.drop_contradicting:
        keep &= ~contradicting(split)
    if config.train.fold is not None:
        index, count = parse_fold(config.train.fold)
        keep &= parts(split, count) != index
    return np.flatnonzero(keep)
