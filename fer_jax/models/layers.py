"""Layers every network is made of: Flax's own where they fit, over the project's operations."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from fer_jax import ops

BATCH_AXIS = "batch"  # name of the mesh axis that a batch is sharded over

# He et al. 2015, eq. 10: the spread that keeps the variance of ReLU activations from layer to layer.
he_normal = nn.initializers.he_normal()

Conv = functools.partial(
    nn.Conv, kernel_init=he_normal, conv_general_dilated=ops.conv_general_dilated
)
Dense = functools.partial(nn.Dense, kernel_init=he_normal)


class MaxPool(nn.Module):
    """Maximum over windows of `[batch, height, width, channels]`.

    Attributes:
      window: height and width of a window.
      strides: steps from window to window.
      padding: "VALID" or "SAME" (the larger half of the padding at the end, as Keras has it).
    """

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `x`."""
        return ops.max_pool(x, self.window, strides=self.strides, padding=self.padding)


class AvgPool(nn.Module):
    """Mean over windows of `[batch, height, width, channels]`, VALID padding.

    Attributes:
      window: height and width of a window.
      strides: steps from window to window.
    """

    window: tuple[int, int]
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `x`."""
        return ops.avg_pool(x, self.window, strides=self.strides)


class GlobalAvgPool(nn.Module):
    """Mean over height and width: `[batch, height, width, channels]` to `[batch, channels]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `x`."""
        return x.mean(axis=(1, 2))


class Flatten(nn.Module):
    """`[batch, ...]` to `[batch, features]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Flattens `x`."""
        return x.reshape(x.shape[0], -1)


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the global batch, not on its device.

    Srivastava et al. 2014, in the inverted form: what is kept is divided by `1 - rate`.

    Attributes:
      rate: share of units set to zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None) -> jax.Array:
        """Drops units while training, passes `x` through otherwise.

        Args:
          x: `[batch, ...]` float.
          train: whether to drop.
          positions: `[batch]` int32, each example's place in the global batch; needed to train.

        Returns:
          An array like `x`.
        """
        if not train or self.rate == 0.0:
            return x
        if positions is None:
            raise ValueError("dropout needs `positions`: each example's place in the global batch")
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with Keras's defaults for momentum and epsilon.

    While training it uses the statistics of the global batch, averaged over `axis_name`; otherwise
    the running ones, so that an image's output does not depend on its batch.

    Attributes:
      axis_name: mesh axis the batch is sharded over; None outside `shard_map`.
      momentum: share of the running statistics kept at a step.
      epsilon: added to the variance.
    """

    axis_name: str | None = None
    momentum: float = 0.99
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`, `[batch, ..., channels]` float, over all axes but the last."""
        return nn.BatchNorm(
            use_running_average=not train,
            axis_name=self.axis_name if train and not self.is_initializing() else None,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=x.dtype,
            name="norm",
        )(x)


# The layers that a table of a network shows, each as one row.
LAYERS = (nn.Conv, nn.Dense, MaxPool, AvgPool, GlobalAvgPool, Flatten, Dropout, BatchNorm)
