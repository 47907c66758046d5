"""What a prepared data set is: its splits, its classes, and the version of its files."""

import dataclasses

import numpy as np

from fer_jax.labels import CLASSES

# Of the prepared files, by data set; raise one when its arrays or their metadata change.
VERSIONS = {"fer2013": "1.1.0", "folder": "1.0.0", "synthetic_faces": "1.1.0"}

type Examples = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, ids: see Split


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, in a fixed order.

    Attributes:
      images: `[n, 48, 48, 1]` uint8, memory-mapped, read-only.
      labels: `[n]` uint8, indices into the data set's classes.
      ids: `[n]` bytes, the example's name in its source, e.g. `b"PrivateTest_10131363"`.
      in_train: `[n]` bool, whether an image of the training split has exactly the same pixels;
        False throughout for the training split itself.
      soft: `[n, classes]` float32, soft labels of training images, rows sum to one; None without.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    in_train: np.ndarray
    soft: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
      name: of the TFDS builder, one of `VERSIONS`.
      kind: name of the builder's config, e.g. "jpeg"; the data set's name where it has none.
      source_sha256: SHA-256 of the source, in hexadecimal.
      splits: "train", "valid" and "test".
      classes: names in the order of the labels.
    """

    name: str
    kind: str
    source_sha256: str
    splits: dict[str, Split]
    classes: tuple[str, ...] = CLASSES
