"""The training state: arrays only, so that a checkpoint is a plain tree."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fer_jax import keys
from fer_jax.labels import IMAGE_SHAPE


class RunningSums(flax.struct.PyTreeNode):
    """Sums over the training images of an epoch so far, each seen as it was trained on.

    Attributes:
      loss: `[]` float32, cross-entropy in nats.
      correct: `[]` int32, images whose likeliest class was the true one.
      count: `[]` int32, images.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def zeros(cls) -> "RunningSums":
        """Returns the sums of no image."""
        zero = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros((), jnp.float32), zero, zero)

    def means(self) -> dict[str, float]:
        """Returns `loss` and `accuracy`, on the host."""
        count = int(self.count)
        return {"loss": float(self.loss) / count, "accuracy": int(self.correct) / count}


class TrainState(flax.struct.PyTreeNode):
    """Everything a run needs to go on from where it was.

    Attributes:
      step: `[]` int32, optimiser steps taken.
      seed: `[]` uint32, what every random number follows from.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch normalisation, float32; empty without it.
      opt_state: the optimiser's state.
      averages: exponential averages of `params` and `batch_stats`, with these keys; empty unless
        `train.ema_decay` is on. BatchNorm's statistics are averaged like the weights they go with.
      running: sums over the images of the epoch so far, as seen in training (dropout on).
      bad_step: `[]` int32, the first step whose loss was not finite, -1 if there was none.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    averages: Any
    running: RunningSums
    bad_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What is evaluated, as `model.apply` takes it: the averages where there are any."""
        return variables_of(vars(self))


def variables_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is evaluated of a state, given its fields by name, as a checkpoint has them."""
    return fields["averages"] or {name: fields[name] for name in ("params", "batch_stats")}


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: int, averaged: bool = False
) -> TrainState:
    """Initialises the network and the optimiser from the seed.

    Args:
      model: as `fer_jax.models.create_model` builds it.
      tx: the optimiser.
      seed: 0 to 2**31 - 1.
      averaged: whether averages of the weights are kept.

    Returns:
      The state before the first step.
    """
    images = jnp.zeros((1, *IMAGE_SHAPE), jnp.float32)
    variables = model.init(keys.init_key(jnp.uint32(seed)), images, train=False)
    evaluated = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        **evaluated,
        opt_state=tx.init(variables["params"]),
        averages=jax.tree.map(jnp.copy, evaluated) if averaged else {},
        running=RunningSums.zeros(),
        bad_step=jnp.asarray(-1, jnp.int32),
    )
