"""Data: sources -> prepared splits -> batches."""

from fer_jax.data.arrays import (
    CLASSES,
    SPLITS,
    DataError,
    Dataset,
    Split,
    load_dataset,
    open_arrays,
)

__all__ = ["CLASSES", "SPLITS", "DataError", "Dataset", "Split", "load_dataset", "open_arrays"]
