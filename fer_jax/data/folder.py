"""TFDS builder `folder`: faces of one's own."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fer_jax.data.arrays import open_arrays
from fer_jax.data.builder import ArraysMixin
from fer_jax.data.dataset import VERSIONS, Examples
from fer_jax.data.own import KIND_DIGITS, Faces
from fer_jax.errors import DataError


class Folder(ArraysMixin, tfds.core.GeneratorBasedBuilder):
    """Faces of one's own, from `train|valid|test/<class>/` in a folder or an archive.

    Pictures of any size, format and colour become 48x48, 8-bit grey, as `fer_jax.data.pictures`
    says. The beginning of the source's SHA-256 names the config, so that other pictures are another
    config: `tfds.load("folder", builder_kwargs={"source": "faces"})`.
    """

    VERSION = tfds.core.Version(VERSIONS["folder"])

    def __init__(
        self, *, source: str | os.PathLike | None = None, config: Any = None, **kwargs: Any
    ):
        """Takes the source's path besides the arguments of every TFDS builder."""
        self._faces = None if source is None else Faces(source)
        self._sha256 = self._faces.sha256() if self._faces else ""
        if self._faces:
            config = tfds.core.BuilderConfig(name=self._sha256[:KIND_DIGITS])
        elif config is None:
            raise DataError("the data set folder needs a source: the folder with the pictures")
        elif isinstance(config, str):
            config = tfds.core.BuilderConfig(name=config)
        super().__init__(config=config, **kwargs)
        self._original_state["source"] = source  # TFDS pickles a builder as its arguments

    def class_names(self) -> tuple[str, ...]:
        """Returns the source's classes, or those that were prepared."""
        return self._faces.classes if self._faces else self._prepared_classes()

    def _prepared_classes(self) -> tuple[str, ...]:
        return open_arrays(Path(self.data_dir) / "arrays").classes

    def read_splits(self) -> tuple[Mapping[str, Examples], str]:
        """Reads and checks the pictures."""
        if self._faces is None:
            raise DataError("the data set folder needs a source: the folder with the pictures")
        return self._faces.read(), self._sha256
