"""Prepared arrays -> batches: one order of an epoch, streamed from the host or resident."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import keys
from fer_jax.data.dataset import Split
from fer_jax.errors import ConfigError

# What `tf.data` hands over at once: a small batch takes little longer to train than to hand over.
_CHUNK_IMAGES = 1024


@functools.partial(jax.jit, static_argnums=2)
def epoch_order(seed: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
    """Returns the order in which an epoch visits the training images.

    Args:
      seed: `[]` uint32, the run's.
      epoch: `[]` int32, counted from 0.
      count: training images.

    Returns:
      `[count]` int32, a permutation that depends on (seed, epoch) alone.
    """
    return jax.random.permutation(keys.order_key(seed, epoch), count).astype(jnp.int32)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the full batches in an epoch; an incomplete last one is dropped.

    Raises:
      ConfigError: if there is not a single full batch.
    """
    if count < batch_size:
        raise ConfigError(
            f"config.train.batch_size is {batch_size}, but the train split has {count} images"
        )
    return count // batch_size


def start_streaming() -> None:
    """Imports TensorFlow, which takes 10 s: before a clock runs, not within the first epoch."""
    import tensorflow  # noqa: F401


def stream_batches(
    split: Split, order: np.ndarray, batch_size: int, first_step: int = 0
) -> Iterator[tuple[np.ndarray, Any]]:
    """Streams one epoch's full batches through `tf.data`, prefetched on a thread of its own.

    Args:
      split: the training images.
      order: `[count]` int32, from :func:`epoch_order`.
      batch_size: images a batch.
      first_step: batches to skip, for a run that goes on in mid-epoch.

    Yields:
      images `[batch, 48, 48, 1]` uint8 and labels `[batch]` int32, or the pair of these and soft
      labels `[batch, classes]` float32 where the split has them.
    """
    import tensorflow as tf  # needed only here

    soft = [] if split.soft is None else [split.soft]

    def gather(indices):
        # NumPy reads straight from the memory map: the split is never copied whole.
        return (
            split.images[indices],
            split.labels[indices].astype(np.int32),
            *[array[indices] for array in soft],
        )

    def load(indices):
        kinds = (tf.uint8, tf.int32, *[tf.float32] * len(soft))
        return tf.numpy_function(gather, [indices], kinds, stateful=False)

    last_step = steps_per_epoch(len(order), batch_size)
    indices = order[first_step * batch_size : last_step * batch_size]
    chunk = batch_size * max(1, _CHUNK_IMAGES // batch_size)
    chunks = tf.data.Dataset.from_tensor_slices(indices).batch(chunk).map(load).prefetch(2)
    for arrays in chunks.as_numpy_iterator():  # pyright: ignore[reportGeneralTypeIssues]
        for start in range(0, len(arrays[0]), batch_size):
            images, *labels = (array[start : start + batch_size] for array in arrays)
            yield images, tuple(labels) if soft else labels[0]
