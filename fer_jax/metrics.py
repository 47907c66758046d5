"""Log-probabilities and labels -> numbers, in NumPy and float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.labels import CLASSES


def compute(
    labels: np.ndarray,
    log_probs: np.ndarray,
    where: np.ndarray | None = None,
    classes: Sequence[str] = CLASSES,
) -> dict[str, Any]:
    """Measures predictions.

    * `loss`: mean cross-entropy in nats, the paper's equation (4).
    * `accuracy`: share of images whose likeliest class is the true one (top-1).
    * `one_vs_rest_accuracy`: the paper's equation (3), (TP + TN) / all, taken per class and
      averaged over the classes. With seven it equals 1 - 2 (1 - accuracy) / 7 and is no substitute
      for top-1 accuracy.
    * `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN); a class that neither occurs nor is
      predicted counts as 0.
    * `recall`: TP / (TP + FN) by class name, None for a class that does not occur.
    * `confusion`: images by (true class, predicted class), in the order of `classes`.
    * `count`: images.

    Args:
      labels: `[n]` integers, indices into `classes`.
      log_probs: `[n, classes]` float, natural logarithms.
      where: `[n]` bool, the images that count; None: all.
      classes: names of the classes.

    Returns:
      JSON-serialisable, with the keys above.

    Raises:
      ValueError: if the shapes do not fit each other, or no image counts.
    """
    labels = np.asarray(labels, np.int64)
    log_probs = np.asarray(log_probs, np.float64)
    if log_probs.shape != (len(labels), len(classes)):
        raise ValueError(
            f"log-probabilities {list(log_probs.shape)} for {len(labels)} labels and "
            f"{len(classes)} classes"
        )
    if where is not None:
        labels, log_probs = labels[where], log_probs[where]
    count, n = len(labels), len(classes)
    if count == 0:
        raise ValueError("metrics of no image")
    cells = labels * n + log_probs.argmax(axis=1)
    confusion = np.bincount(cells, minlength=n * n).reshape(n, n)
    hits = np.diag(confusion)
    true = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    wrong = (true - hits) + (predicted - hits)  # FN + FP of each class against the rest
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    return {
        "loss": float(-log_probs[np.arange(count), labels].mean()),
        "accuracy": float(hits.sum() / count),
        "one_vs_rest_accuracy": float(np.mean(1 - wrong / count)),
        "macro_f1": float(f1.mean()),
        "recall": {
            name: float(h / t) if t else None
            for name, h, t in zip(classes, hits, true, strict=True)
        },
        "confusion": confusion.tolist(),
        "count": count,
    }


def of_split(
    labels: np.ndarray,
    in_train: np.ndarray,
    log_probs: np.ndarray,
    classes: Sequence[str] = CLASSES,
) -> dict[str, Any]:
    """Measures the predictions for a split.

    Args:
      labels: `[n]` integers.
      in_train: `[n]` bool, whether an image's pixels also stand in train.
      log_probs: `[n, classes]` float.
      classes: names of the classes.

    Returns:
      As :func:`compute`, and `accuracy_unique` with `count_unique`, without the images that also
      stand in train; None and 0 if that leaves none.
    """
    unique = ~np.asarray(in_train)
    hits = np.asarray(log_probs).argmax(axis=1) == labels
    return compute(labels, log_probs, classes=classes) | {
        "accuracy_unique": float(hits[unique].mean()) if unique.any() else None,
        "count_unique": int(unique.sum()),
    }
