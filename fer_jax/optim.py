"""The optimiser and its learning-rate schedule, from the configuration."""

import functools
from typing import Any

import jax
import optax

from fer_jax.config import Config


def create_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser that `config.train` describes.

    Args:
      config: the whole configuration.
      steps: optimiser steps in an epoch.

    Returns:
      Adam (Kingma & Ba 2015; with decoupled weight decay AdamW) or SGD with Nesterov momentum.
      `cosine` grows linearly from 0 over the warm-up and falls to 0 at the last step.
    """
    train = config.train
    rate: Any = train.learning_rate
    if train.schedule == "cosine":
        warmup = round(train.warmup_epochs * steps)
        total = max(train.epochs * steps, warmup + 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if warmup else rate, train.learning_rate, warmup, total
        )
    chain = []
    if train.optimizer == "adam":
        chain.append(optax.scale_by_adam())
    else:
        chain.append(optax.trace(train.momentum, nesterov=True))
    if train.weight_decay:
        # Biases and normalisation have one axis; only kernels decay.
        mask = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
        chain.append(optax.add_decayed_weights(train.weight_decay, mask))
    return optax.chain(*chain, optax.scale_by_learning_rate(rate))
