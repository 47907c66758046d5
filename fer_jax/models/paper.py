"""The paper's three networks, and the family that the factor study varies.

Every convolution has VALID padding and is followed by a ReLU; every network takes images
`[batch, 48, 48, 1]` float in [0, 1] and returns logits `[batch, num_classes]` float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.errors import ConfigError
from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import AvgPool, ConvRelu, ConvReluMaxPool, Dense, Dropout, Flatten


def _conv(features: int, size: int, dtype: DTypeLike, name: str):
    return ConvRelu(features, (size, size), padding="VALID", dtype=dtype, name=name)


def _conv_pool(features: int, size: int, pool: int, dtype: DTypeLike, layer: int, stage: int):
    """Convolution `layer`, ReLU and max-pool `stage`, whose windows step by 2."""
    return ConvReluMaxPool(
        features,
        (size, size),
        padding="VALID",
        pool=(pool, pool),
        pool_name=f"pool{stage}",
        dtype=dtype,
        name=f"conv{layer}",
    )


class Architecture01(nn.Module):
    """Section 3.2, figure 6: five convolutions, three poolings, three fully connected layers.

    48-44-20-18-16-7-5-3-1, flattened to 128; 1,485,831 parameters.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        x = _conv_pool(64, 5, 5, self.dtype, layer=1, stage=1)(x)
        x = _conv(64, 3, self.dtype, "conv2")(x)
        x = _conv(64, 3, self.dtype, "conv3")(x)
        x = AvgPool((3, 3), (2, 2), name="pool2")(x)
        x = _conv(128, 3, self.dtype, "conv4")(x)
        x = _conv(128, 3, self.dtype, "conv5")(x)
        x = AvgPool((3, 3), (2, 2), name="pool3")(x)
        x = Flatten(name="flatten")(x)
        for i in (1, 2):
            x = nn.relu(Dense(1024, dtype=self.dtype, name=f"dense{i}")(x))
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{i}")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Architecture02(nn.Module):
    """Section 3.2, figure 7: two convolutions, two poolings, two fully connected layers.

    48-46-23-21-10, flattened to 3200; 420,199 parameters.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        for i in (1, 2):
            x = _conv_pool(32, 3, 2, self.dtype, layer=i, stage=i)(x)
        x = Flatten(name="flatten")(x)
        x = nn.relu(Dense(128, dtype=self.dtype, name="dense1")(x))
        x = Dropout(self.dropout, self.axis_name, name="dropout1")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Architecture03(nn.Module):
    """Section 3.2, figure 8: six convolutions in pairs, three poolings, one fully connected layer.

    48-46-44-22-20-18-9-7-5-2, flattened to 512; 290,023 parameters. It has no dropout.
    """

    num_classes: int = NUM_CLASSES
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        del train  # nothing in it differs between training and evaluation
        x = images.astype(self.dtype)
        for stage, features in enumerate((32, 64, 128), start=1):
            x = _conv(features, 3, self.dtype, f"conv{2 * stage - 1}")(x)
            x = _conv_pool(features, 3, 2, self.dtype, layer=2 * stage, stage=stage)(x)
        x = Flatten(name="flatten")(x)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Family(nn.Module):
    """Networks between Architectures 02 and 03, for the factor study.

    `conv_layers` 3x3 convolutions stand in up to three stages of at most two, 32, 64 and 128
    filters wide, each stage closed by a 2x2 max-pool; then come `hidden_layers` fully connected
    layers of 128 with dropout. Two layers make two stages of one, 32 filters each (with one hidden
    layer this is Architecture 02); three to six fill three stages from the last one back.
    Six layers, no hidden one and no dropout are Architecture 03. Dropout acts after each hidden
    layer; without any it acts on the flattened features, so that its rate still means something.
    """

    conv_layers: int
    hidden_layers: int
    num_classes: int = NUM_CLASSES
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        if self.hidden_layers not in (0, 1, 2):
            raise ConfigError(
                f"config.model.hidden_layers is {self.hidden_layers}; it must be 0 to 2"
            )
        x = images.astype(self.dtype)
        layer = 1
        for stage, (features, depth) in enumerate(family_stages(self.conv_layers), start=1):
            for _ in range(depth - 1):
                x = _conv(features, 3, self.dtype, f"conv{layer}")(x)
                layer += 1
            x = _conv_pool(features, 3, 2, self.dtype, layer, stage)(x)
            layer += 1
        x = Flatten(name="flatten")(x)
        if self.hidden_layers == 0:
            x = Dropout(self.dropout, self.axis_name, name="dropout0")(x, train=train)
        for i in range(1, self.hidden_layers + 1):
            x = nn.relu(Dense(128, dtype=self.dtype, name=f"dense{i}")(x))
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{i}")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


def family_stages(conv_layers: int) -> tuple[tuple[int, int], ...]:
    """Returns the (filters, convolutions) of each stage of :class:`Family`.

    Raises:
      ConfigError: if `conv_layers` is not 2 to 6.
    """
    stages = {
        2: ((32, 1), (32, 1)),
        3: ((32, 1), (64, 1), (128, 1)),
        4: ((32, 1), (64, 1), (128, 2)),
        5: ((32, 1), (64, 2), (128, 2)),
        6: ((32, 2), (64, 2), (128, 2)),
    }
    if conv_layers not in stages:
        raise ConfigError(f"config.model.conv_layers is {conv_layers}; it must be 2, 3, 4, 5 or 6")
    return stages[conv_layers]
