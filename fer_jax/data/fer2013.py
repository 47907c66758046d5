"""TFDS builder `fer2013`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from fer_jax.data import sources
from fer_jax.data.arrays import open_arrays
from fer_jax.data.builder import ArraysMixin
from fer_jax.data.dataset import VERSIONS, Examples
from fer_jax.data.find import find_source
from fer_jax.errors import DataError

_DESCRIPTIONS = {
    "jpeg": "JPEG mirror (Kaggle msambare/fer2013): archive.zip or its extracted folder.",
    "csv": "The competition's fer2013.tar.gz or fer2013.csv.",
    "icml_csv": "icml_face_data.csv: the competition's rows, columns in another order.",
}


class Fer2013(ArraysMixin, tfds.core.GeneratorBasedBuilder):
    """FER2013: 35,887 faces, 48x48, 8-bit grey, seven emotions.

    Splits: train (Training), valid (PublicTest), test (PrivateTest). Labels are in the order of
    the competition's CSV, whatever the source. Pixels of the JPEG mirror and of the CSV differ, so
    each kind of source is a config: `fer2013/jpeg` (default), `fer2013/csv`, `fer2013/icml_csv`;
    with `_partial` appended, counts other than the published ones are allowed.

    `tfds.load("fer2013/csv", builder_kwargs={"source": "fer2013.csv"})` reads that source; without
    one, it is looked for in TFDS's manual folder and then, for jpeg, fetched with kagglehub.
    """

    VERSION = tfds.core.Version(VERSIONS["fer2013"])
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=kind + suffix, description=_DESCRIPTIONS[kind])
        for suffix in ("", sources.PARTIAL)
        for kind in sources.KINDS
    ]

    def __init__(self, *, source: str | os.PathLike | None = None, **kwargs: Any):
        """Takes the source's path besides the arguments of every TFDS builder."""
        super().__init__(**kwargs)
        self._original_state["source"] = source  # TFDS pickles a builder as its arguments
        self._source = source

    def read_splits(self) -> tuple[Mapping[str, Examples], str]:
        """Reads and checks the source."""
        config = str(self.builder_config_name)
        kind = config.removesuffix(sources.PARTIAL)
        source = self._find(kind)
        if source.kind != kind:
            raise DataError(
                f"{source.path} is of kind {source.kind}, but the config is {config}: "
                f"use fer2013/{config.replace(kind, source.kind, 1)}"
            )
        return sources.read_source(source, partial=config != kind), source.sha256

    def _find(self, kind: str) -> sources.Source:
        if self._source is not None:
            return sources.recognise(self._source)
        return find_source(Path(self.data_dir_root), kind)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Prepares the data set; refuses one that was prepared from another source."""
        super().download_and_prepare(**kwargs)
        if self._source is not None:
            folder = Path(self.data_dir)
            dataset = open_arrays(folder / "arrays")
            sources.check_source(dataset, sources.recognise(self._source), folder)
