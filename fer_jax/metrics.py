"""Metrics as sums: a step returns summable arrays, the host turns their total into numbers."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fer_jax.labels import CLASSES


class Sums(flax.struct.PyTreeNode):
    """What adds up over images.

    Attributes:
      loss: `[]` float32, total cross-entropy in nats.
      confusion: `[7, 7]` int32, images by (true class, predicted class).
    """

    loss: jax.Array
    confusion: jax.Array

    def __add__(self, other: "Sums") -> "Sums":
        """Adds the sums of two disjoint sets of images."""
        return jax.tree.map(jnp.add, self, other)


def create_sums() -> Sums:
    """Returns the sums of no image."""
    n = len(CLASSES)
    return Sums(jnp.zeros((), jnp.float32), jnp.zeros((n, n), jnp.int32))


def batch_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """Sums over the images of one batch.

    Args:
      logits: `[batch, 7]` float32.
      labels: `[batch]` int32 in 0..6.
      mask: `[batch]` bool; images whose entry is False do not count.

    Returns:
      The batch's :class:`Sums`. A non-finite loss of a masked image does not leak in.
    """
    n = len(CLASSES)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    cells = labels * n + jnp.argmax(logits, axis=-1).astype(jnp.int32)
    counts = jnp.zeros((n * n,), jnp.int32).at[cells].add(mask.astype(jnp.int32))
    return Sums(jnp.where(mask, loss, 0.0).sum(), counts.reshape(n, n))


def compute(sums: Sums) -> dict[str, Any]:
    """Turns sums into numbers.

    * `loss`: mean cross-entropy in nats, the study's equation (4).
    * `accuracy`: share of images whose likeliest class is the true one (top-1).
    * `one_vs_rest_accuracy`: the study's equation (3), (TP + TN) / all, taken per class and
      averaged over the seven classes. It equals 1 - 2 (1 - accuracy) / 7 and is no substitute for
      top-1 accuracy.
    * `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN); a class that neither occurs nor is
      predicted counts as 0.
    * `recall`: TP / (TP + FN) by class name, None for a class that does not occur.
    * `confusion`: images by (true class, predicted class), in the order of `CLASSES`.
    * `count`: images.

    Raises:
      ValueError: if no image was counted.
    """
    confusion = np.asarray(sums.confusion, np.int64)
    count = int(confusion.sum())
    if count == 0:
        raise ValueError("metrics of no image: the split is empty or every image was masked")
    hits = np.diag(confusion)
    true = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    wrong = (true - hits) + (predicted - hits)  # FN + FP of each class against the rest
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    return {
        "loss": float(sums.loss) / count,
        "accuracy": float(hits.sum() / count),
        "one_vs_rest_accuracy": float(np.mean(1 - wrong / count)),
        "macro_f1": float(f1.mean()),
        "recall": {
            name: float(h / t) if t else None
            for name, h, t in zip(CLASSES, hits, true, strict=True)
        },
        "confusion": confusion.tolist(),
        "count": count,
    }
