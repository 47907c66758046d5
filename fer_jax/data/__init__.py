"""Data: sources -> prepared splits -> batches."""

from fer_jax.data.arrays import open_arrays
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SPLITS

__all__ = [
    "CLASSES",
    "SPLITS",
    "DataError",
    "Dataset",
    "Split",
    "load_dataset",
    "open_arrays",
    "register",
]


def register() -> None:
    """Registers the TFDS builders: `tfds.load("fer2013")`, `"synthetic_faces"` and `"folder"`.

    Importing `fer_jax.data.fer2013` alone does the same for that one.
    """
    from fer_jax.data import fer2013, folder, synthetic_faces  # noqa: F401 - a definition registers itself
