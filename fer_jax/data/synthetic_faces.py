"""TFDS builder `synthetic_faces`."""

import hashlib
from collections.abc import Mapping

import tensorflow_datasets as tfds

from fer_jax.data import drawn as faces
from fer_jax.data.builder import ArraysMixin
from fer_jax.data.dataset import VERSIONS, Examples


class SyntheticFaces(ArraysMixin, tfds.core.GeneratorBasedBuilder):
    """Drawn faces, 48x48, 8-bit grey, that show the seven expressions; nothing is downloaded.

    Splits: train 6,000, valid 1,000, test 1,000, balanced. The expressions follow Ekman & Friesen's
    action units; `fer_jax.data.drawn` says how, and what else varies.
    """

    VERSION = tfds.core.Version(VERSIONS["synthetic_faces"])

    def read_splits(self) -> tuple[Mapping[str, Examples], str]:
        """Draws the faces; the SHA-256 is that of all images and labels."""
        splits = faces.draw_splits()
        digest = hashlib.sha256()
        for images, labels, _ in splits.values():
            digest.update(images.tobytes())
            digest.update(labels.tobytes())
        return splits, digest.hexdigest()
