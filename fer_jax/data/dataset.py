"""What a prepared data set is: its splits, its classes, and the version of its files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax.labels import CLASSES

# Of the prepared files, by data set; raise one when its arrays or their metadata change.
VERSIONS = {"fer2013": "1.1.0", "folder": "1.1.0", "synthetic_faces": "1.1.0"}

# The forms in which FER2013 is published, see `fer_jax.data.sources`: its builder's configs, beside
# those that allow other counts.
KINDS = ("jpeg", "csv", "icml_csv")

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

    def is_of(self, described: Mapping[str, Any]) -> bool:
        """Returns whether a record is of this data set.

        Args:
          described: the record's `dataset`. Its hash is of the source as it was wrapped; the whole
            of FER2013 counts as the same in an archive and in a folder.
        """
        if described["source_sha256"] == self.source_sha256:
            return True
        counts = {name: len(split.labels) for name, split in self.splits.items()}
        here = {"name": "fer2013", "kind": self.kind, "count": counts}
        is_whole = self.name == "fer2013" and self.kind in KINDS
        return is_whole and here == {name: described.get(name) for name in here}
