"""The optimiser, its learning-rate schedule and averages of the weights, from the configuration."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fer_jax.config import Config


def create_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser that `config.train` describes.

    * `adam`: Kingma & Ba 2015; with decoupled weight decay AdamW.
    * `sgd`: with Nesterov momentum.
    * `muon`: Jordan 2024 through optax: the Nesterov momentum of each kernel, as a matrix with a
      column for each output, made orthogonal and scaled by sqrt(max(1, outputs / inputs)); what has
      one axis gets Adam with Nesterov momentum.

    Weight decay is decoupled and reaches kernels only; what has one axis (biases, normalisation)
    moves at `bias_rate` times the rate.

    Args:
      config: the whole configuration.
      steps: optimiser steps in an epoch.
    """
    train = config.train
    chain = [_scaling(train)]
    if train.weight_decay:
        chain.append(optax.add_decayed_weights(train.weight_decay, is_kernel))
    if train.bias_rate != 1.0:
        chain.append(optax.masked(optax.scale(train.bias_rate), _is_bias))
    return optax.chain(*chain, optax.scale_by_learning_rate(create_schedule(config, steps)))


def _scaling(train: Any) -> optax.GradientTransformation:
    if train.optimizer == "adam":
        return optax.scale_by_adam()
    if train.optimizer == "sgd":
        return optax.trace(train.momentum, nesterov=True)
    # A rate of -1 leaves the direction uphill, as the other two do; the real rate comes last.
    return optax.contrib.muon(-1.0, beta=train.momentum, muon_weight_dimension_numbers=_matrix_axes)


def _matrix_axes(params: Any) -> Any:
    """Says how Muon sees each kernel as a matrix: the last axis counts its outputs."""

    def axes(param: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if param.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

    return jax.tree.map(axes, params)


def is_kernel(params: Any) -> Any:
    """Marks kernels: biases and normalisation have one axis."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _is_bias(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim <= 1, params)


def create_schedule(config: Config, steps: int) -> optax.ScalarOrSchedule:
    """Builds the learning rate as a function of the steps taken.

    `cosine` and `linear` grow linearly from 0 over `warmup_epochs` to `learning_rate` and fall to 0
    at the last step: as half a cosine (Loshchilov & Hutter 2017, equation (5)), or as a line. A run
    that is no longer than its warm-up ends while the rate still grows.

    Args:
      config: the whole configuration.
      steps: optimiser steps in an epoch.
    """
    train = config.train
    if train.schedule == "constant":
        return train.learning_rate
    warmup = round(train.warmup_epochs * steps)
    total = max(train.epochs * steps, warmup + 1)
    if train.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else train.learning_rate, train.learning_rate, warmup, total
        )
    grow = optax.linear_schedule(0.0, train.learning_rate, warmup)
    fall = optax.linear_schedule(train.learning_rate, 0.0, total - warmup)
    return optax.join_schedules([grow, fall], [warmup])


def update_averages(averages: Any, values: Any, steps: jax.Array, decay: float) -> Any:
    """Moves exponential averages on by a step.

    With the values v_1 to v_t of t steps and the decay d, the average is sum d^(t - i) v_i over
    sum d^(t - i): the moving average with the correction of Kingma & Ba 2015, section 3, so that
    the first steps do not pull it to where it began. What it starts from does not matter.

    Args:
      averages: a tree of float arrays: the averages after the step before.
      values: a tree like it, after this step.
      steps: `[]` int32, steps taken including this one, at least 1.
      decay: in (0, 1).

    Returns:
      The averages after this step.
    """
    # 1 - d^t, without cancelling digits.
    total = -jnp.expm1(steps.astype(jnp.float32) * math.log(decay))
    weight = (1.0 - decay) / total
    return jax.tree.map(lambda a, v: a + weight * (v - a), averages, values)


def climb(params: Any, grads: Any, radius: float) -> Any:
    """Moves parameters uphill to where sharpness-aware minimisation takes the gradient.

    Foret et al. 2021, equation (2) with p = 2: by `radius` along the gradient's direction.

    Args:
      params: a tree of float arrays.
      grads: a tree like it, of the global batch.
      radius: the distance, rho in the paper.
    """
    scale = radius / (optax.tree.norm(grads) + 1e-12)
    return jax.tree.map(lambda p, g: p + scale * g, params, grads)
