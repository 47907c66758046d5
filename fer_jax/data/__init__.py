"""Data: sources -> prepared splits -> batches."""

from fer_jax.data.arrays import Dataset, Split, load_dataset, open_arrays
from fer_jax.errors import DataError
from fer_jax.labels import CLASSES, SPLITS

__all__ = ["CLASSES", "SPLITS", "DataError", "Dataset", "Split", "load_dataset", "open_arrays"]
