"""Progressive training: go on from a finished run, without the images that it disagrees with.

You et al. 2015 train a network, drop the training images that it is unsure of, and fine-tune it on
the rest. Here, with seven classes, an image is dropped if the likeliest class is not its label.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.data.dataset import Split
from fer_jax.data.select import take
from fer_jax.errors import CheckpointError
from fer_jax.labels import CLASSES
from fer_jax.runs import checkpoint, workdir


def best_variables(folder: Path, field: str, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the best variables of a finished run, as host arrays.

    Args:
      folder: the run's, with its `results.json`.
      field: that names it, for messages.
      classes: names of the classes that it must tell apart, in order.

    Raises:
      CheckpointError: if the run is not finished, its classes are others, or its best checkpoint
        cannot be read.
    """
    found: Any = workdir.read_json(folder / "results.json")
    try:
        step = found["history"][found["best_epoch"] - 1]["step"]
        known = found["dataset"].get("classes", CLASSES)  # older records are all of these
    except (KeyError, IndexError, TypeError, AttributeError):
        raise CheckpointError(f"{field}: {folder} holds no finished run; train it first") from None
    if list(known) != list(classes):
        raise CheckpointError(
            f"{field}: {folder} tells apart {', '.join(known)}; the classes here are "
            f"{', '.join(classes)}"
        )
    return checkpoint.load_variables(folder, step)


def drop_disagreeing(train: Split, log_probs: np.ndarray) -> Split:
    """Returns the training images without those that a network takes for another class.

    Args:
      train: `n` images.
      log_probs: `[n, classes]` float32, the network's for these images.
    """
    return take(train, np.flatnonzero(log_probs.argmax(axis=1) == train.labels))
