"""A run's best checkpoint -> metrics; test is opened once, and that is counted."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import loop, metrics, tta
from fer_jax.config import Config, validate
from fer_jax.data.dataset import Dataset
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import ConfigError, TrainingError, WorkdirError
from fer_jax.machine import devices, distributed
from fer_jax.predict import Predict, make_predict
from fer_jax.runs import checkpoint, openings, record, resume
from fer_jax.runs import workdir as wd

log = logging.getLogger("fer_jax")


def evaluate_best(config: Config, workdir: Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on one split; the folder need not be writable.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      split: `train`, `valid` or `test`. Opening test for a checkpoint that it was not opened for
        before is counted in the folder, which must be writable for that.

    Returns:
      The metrics that :func:`fer_jax.metrics.of_split` describes.

    Raises:
      ConfigError: for a configuration that makes no sense, or that keeps test closed.
      DataError: if the data set cannot be read.
      TrainingError: if there is no checkpoint, or one of another configuration.
      CheckpointError: if the best checkpoint is damaged.
      WorkdirError: if opening test cannot be counted.
    """
    validate(config)
    if split == "test" and not config.eval.open_test:
        raise ConfigError(
            "config.eval.open_test is False: test stays closed for this run. Evaluate on valid"
        )
    dataset = load_dataset(config.data)
    before = distributed.on_first(resume.read_before)(config, workdir, dataset)
    if before is None:
        raise TrainingError(
            f"no checkpoint in {workdir}; train first (--mode=train), or name the run's folder "
            "with --workdir=PATH"
        )
    best = distributed.on_first(resume.best_row)(before["history"], workdir)
    model, mesh = loop.create_network(config, len(dataset.classes), requested=0)
    variables = distributed.on_first(checkpoint.load_variables)(workdir, best["step"])
    checkpoint.check_variables(variables, model, workdir)
    predict = make_predict(model, mesh, config.eval.batch_size)
    placed = devices.put(variables, devices.replicated(mesh))
    if split == "test":
        with _locked_for_test(workdir, variables):
            _, log_probs = open_test(dataset, predict, placed, best, workdir)
    else:
        log_probs = predict(placed, dataset.splits[split].images)
    found = measure(dataset, split, log_probs)
    compare(found, split, best)
    return found


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for all processes of this run: the first one has the lock."""
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(wd.locked(workdir)))()
        yield


def measure(dataset: Dataset, split: str, log_probs: np.ndarray) -> dict[str, Any]:
    """Measures log-probabilities `[n, classes]` of a split; see `fer_jax.metrics.of_split`."""
    found = dataset.splits[split]
    return metrics.of_split(found.labels, found.in_train, log_probs, dataset.classes)


def open_test(
    dataset: Dataset, predict: Predict, variables: Any, best: dict[str, Any], workdir: Path
) -> tuple[int, np.ndarray]:
    """Returns how often test has been opened by now, and its log-probabilities.

    What test gives for a checkpoint is kept in the folder before anything else is done with it.
    """
    key = checkpoint.fingerprint(variables)
    opened, log_probs = distributed.on_first(openings.find)(workdir, key)
    if log_probs is None:
        if opened:
            log.warning(
                "Test was opened before, for another checkpoint of this run: this is opening %d, "
                "and the run is no longer one whose test result was seen once",
                opened + 1,
            )
        log_probs = predict(variables, dataset.splits["test"].images)
        opened = distributed.on_first(openings.keep)(workdir, best["epoch"], key, log_probs)
    return opened, log_probs


@contextlib.contextmanager
def _locked_for_test(workdir: Path, variables: Any) -> Iterator[None]:
    """Holds the folder if opening test is still to be counted there."""

    def is_open() -> bool:
        return openings.find(workdir, checkpoint.fingerprint(variables))[1] is not None

    if distributed.on_first(is_open)():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(workdir))
        except WorkdirError as error:
            raise WorkdirError(
                f"opening test is counted in the run's folder, and that is not possible: {error}"
            ) from error
        yield


def compare(found: dict[str, Any], split: str, best: dict[str, Any]) -> None:
    """Warns if a checkpoint gives other numbers than it gave when it was saved."""
    expected, accuracy = best.get(f"{split}/accuracy"), found["accuracy"]
    # Rounding moves an image over a border now and then.
    if expected is not None and abs(accuracy - expected) > max(2 / found["count"], 1e-3):
        log.warning(
            "Accuracy on %s is %.4f, but was %.4f when the checkpoint was saved: do code, data and "
            "machine compute the same?",
            *(split, accuracy, expected),
        )


def predict_views(
    config: Config,
    dataset: Dataset,
    predict: Predict,
    variables: Any,
    splits: list[str],
    before_split: Callable[[], None],
) -> dict[str, Any]:
    """Returns what the record says of averages over views of each image.

    Calls `before_split` before the views of each split, of which there are many.
    """
    found: dict[str, Any] = {"name": config.eval.views, "metrics": {}, "predictions": {}}
    how = (config.eval.views, config.eval.average)
    for split in splits:
        before_split()
        images = np.asarray(dataset.splits[split].images)
        log_probs = tta.predict_views(predict, variables, images, *how)
        found["metrics"][split] = measure(dataset, split, log_probs)
        found["predictions"][split] = record.encode_predictions(dataset, split, np.exp(log_probs))
    return found
