"""What a prepared data set is: its splits, its classes, and the version of its files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax.labels import CLASSES

# Of the prepared files, by data set; raise one when its arrays or their metadata change.
VERSIONS = {"fer2013": "1.1.0", "folder": "1.1.0", "synthetic_faces": "1.1.0"}

# What sources hold of which older records give the hash alone: Kaggle's archive of the JPEG mirror.
_CONTENTS = {
    "c1c963e34ae883887951ed311b16c31db087297bdca16a3106f846626ff54a4e": (
        "e4a682e0e0fd36b11e9821b0e4578f6d27c3324bad607f8f"
    ),
}

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
      source_sha256: SHA-256 of the source as it was wrapped, in hexadecimal.
      splits: "train", "valid" and "test".
      classes: names in the order of the labels.
      content: tells images and labels apart, whatever they were wrapped in; empty if unknown.
    """

    name: str
    kind: str
    source_sha256: str
    splits: dict[str, Split]
    classes: tuple[str, ...] = CLASSES
    content: str = ""

    def is_of(self, described: Mapping[str, Any]) -> bool:
        """Returns whether a run was on this data set, however its source was wrapped.

        Args:
          described: the `dataset` of its record, or anything else with `source_sha256` and, but for
            older records, `content`.
        """
        source = described["source_sha256"]
        content = described.get("content") or _CONTENTS.get(source)
        return source == self.source_sha256 or (bool(content) and content == self.content)
