"""Progressive training: go on from a finished run, without the images that it disagrees with.

You et al. 2015 train a network, drop the training images that it is unsure of, and fine-tune it on
the rest. Here, with seven classes, an image is dropped if the likeliest class is not its label.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.data.dataset import Dataset
from fer_jax.errors import CheckpointError
from fer_jax.evaluate import Evaluator
from fer_jax.runs.checkpoint import Checkpointer
from fer_jax.state import TrainState


def best_of(folder: Path, state: TrainState) -> TrainState:
    """Returns the best state of a finished run.

    Args:
      folder: the run's, with its `results.json`.
      state: of the same network and optimiser; only structure and shapes are used.

    Raises:
      CheckpointError: if the run is not finished, or is one of another network.
    """
    from fer_jax.runs import workdir

    folder = folder.expanduser()
    found = workdir.read_json(folder / "results.json")
    if found is None:
        raise CheckpointError(
            f"config.train.start_from: {folder} holds no finished run; train it first"
        )
    step = found["history"][found["best_epoch"] - 1]["step"]
    with Checkpointer(folder) as checkpoints:
        return checkpoints.restore(state, step)[0]


def without_disagreement(dataset: Dataset, evaluator: Evaluator, variables: Any) -> Dataset:
    """Returns the data set without the training images that a network takes for another class.

    Args:
      dataset: valid and test stay as they are.
      evaluator: of the data set.
      variables: the network's, on the devices.
    """
    train = dataset.splits["train"]
    _, probabilities = evaluator(variables, "train")
    keep = np.flatnonzero(probabilities.argmax(axis=1) == train.labels)
    kept = type(train)(
        images=np.asarray(train.images)[keep],
        labels=train.labels[keep],
        ids=train.ids[keep],
        in_train=train.in_train[keep],
    )
    return dataclasses.replace(dataset, splits=dataset.splits | {"train": kept})
