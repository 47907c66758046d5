"""GoogLeNet at 48x48.

Takes images `[batch, 48, 48, 1]` float in [0, 1] and returns logits `[batch, num_classes]` float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import (
    AvgPool,
    ConvRelu,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LocalResponseNorm,
    MaxPool,
)

# Szegedy et al. 2015, table 1: filters of the 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool
# projection of each module; a max-pool stands before every stage but the first.
_STAGES = {
    "3": {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    "4": {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    "5": {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
_AUXILIARY = {"4a": "1", "4d": "2"}  # heads, by the module whose output they read


class GoogLeNet(nn.Module):
    """Szegedy et al. 2015, which Giannopoulos et al. 2018 trained on FER2013.

    Established: conv 64 7x7 stride 2, max-pool, normalisation, conv 64 1x1, conv 192 3x3,
    normalisation, max-pool, nine inception modules with max-pools between 3b and 4a and between 4e
    and 5a, global average, dropout 0.4, the classes; while training two auxiliary heads on 4a and
    4d (average pool, conv 128 1x1, FC 1024, dropout 0.7, the classes) whose losses count 0.3.
    Changed for 48x48: the first convolution has stride 1, so that the modules see 12x12, 6x6 and
    3x3 maps (28, 14 and 7 in the original; with stride 2 the heads would have nothing to pool); the
    heads pool 3x3 with stride 1 instead of 5x5 with stride 3, which again leaves 4x4; one input
    channel. Chosen: the normalisation's constants are AlexNet's. 10,318,533 parameters, of which
    the auxiliary heads, unused in evaluation, have 4,344,078.

    While training (not at initialisation) it stores the heads' logits, `[batch, num_classes]`
    float32 each, in the collection `aux_logits` as `head1` and `head2` (tuples of one array, as
    `sow` makes).
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.4
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        pool = (3, 3), (2, 2), "SAME"
        x = images.astype(self.dtype)
        x = ConvRelu(64, (7, 7), dtype=self.dtype, name="conv1")(x)
        x = LocalResponseNorm(name="norm1")(MaxPool(*pool, name="pool1")(x))
        x = ConvRelu(64, (1, 1), dtype=self.dtype, name="conv2_reduce")(x)
        x = ConvRelu(192, (3, 3), dtype=self.dtype, name="conv2")(x)
        x = MaxPool(*pool, name="pool2")(LocalResponseNorm(name="norm2")(x))
        for stage, modules in _STAGES.items():
            if stage != "3":
                x = MaxPool(*pool, name=f"pool{int(stage) - 1}")(x)
            for letter, filters in modules.items():
                name = stage + letter
                x = Inception(filters, self.dtype, name=f"inception{name}")(x)
                if name in _AUXILIARY and (train or self.is_initializing()):
                    number = _AUXILIARY[name]
                    head = AuxiliaryHead(
                        self.num_classes,
                        dtype=self.dtype,
                        axis_name=self.axis_name,
                        name=f"auxiliary{number}",
                    )
                    logits = head(x, train=train)
                    if not self.is_initializing():
                        self.sow("aux_logits", f"head{number}", logits)
        x = GlobalAvgPool(name="pool5")(x)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Inception(nn.Module):
    """Szegedy et al. 2015, figure 2b: four branches side by side, ReLU after each convolution.

    Attributes:
      filters: of the 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection convolutions.
      dtype: of the activations.
    """

    filters: tuple[int, int, int, int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to the four branches' channels, in order."""

        def conv(x, features, size, name):
            return ConvRelu(features, (size, size), dtype=self.dtype, name=name)(x)

        n1, n3_reduce, n3, n5_reduce, n5, n_pool = self.filters
        branches = (
            conv(x, n1, 1, "conv1"),
            conv(conv(x, n3_reduce, 1, "conv3_reduce"), n3, 3, "conv3"),
            conv(conv(x, n5_reduce, 1, "conv5_reduce"), n5, 5, "conv5"),
            conv(MaxPool((3, 3), (1, 1), "SAME", name="pool")(x), n_pool, 1, "project"),
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on an inner module: `[batch, 6, 6, channels]` to `[batch, num_classes]`."""

    num_classes: int = NUM_CLASSES
    dropout: float = 0.7
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps features to logits float32."""
        x = AvgPool((3, 3), (1, 1), name="pool")(x)
        x = ConvRelu(128, (1, 1), dtype=self.dtype, name="conv")(x)
        x = Flatten(name="flatten")(x)
        x = nn.relu(Dense(1024, dtype=self.dtype, name="dense")(x))
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
