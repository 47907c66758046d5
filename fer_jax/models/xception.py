"""Xception and mini-XCEPTION.

Networks take images `[batch, 48, 48, 1]` float in [0, 1] and return logits
`[batch, num_classes]` float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    GlobalAvgPool,
    MaxPool,
    Resize,
    SeparableConv,
)


class MiniXception(nn.Module):
    """Arriaga et al. 2017, the mini-XCEPTION that Nishchal et al. 2018 evaluated.

    Established: all of it. Two conv 8 3x3 with VALID padding, BatchNorm and ReLU; four modules of
    16, 32, 64 and 128 channels; conv 7 3x3, global average. Pixels run from -1 to 1. Its input is
    64x64, to which the images are enlarged here. 58,423 parameters, 56,951 of them trained. The
    original's L2 penalty of 0.01 on most kernels is left out.
    """

    num_classes: int = NUM_CLASSES
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = Resize(64, name="resize")(2.0 * images.astype(self.dtype) - 1.0)
        for i in (1, 2):
            conv = Conv(
                8, (3, 3), padding="VALID", use_bias=False, dtype=self.dtype, name=f"conv{i}"
            )
            x = BatchNorm(self.axis_name, relu=True, name=f"norm{i}")(conv(x), train=train)
        for i, features in enumerate((16, 32, 64, 128), start=1):
            module = DownModule(
                (features, features), False, self.dtype, self.axis_name, name=f"module{i}"
            )
            x = module(x, train=train)
        x = Conv(self.num_classes, (3, 3), dtype=self.dtype, name="logits")(x)
        return GlobalAvgPool(name="pool")(x).astype(jnp.float32)


class Xception(nn.Module):
    """Chollet 2017, figure 5, which Nishchal et al. 2018 took their network from.

    Established: all of it; the dropout before the classes is 0.5. Changed for 48x48: only the
    input's one channel and the seven classes; the middle flow sees 3x3 maps (19x19 in the original)
    and the exit flow ends on 2x2. Pixels run from -1 to 1. 20,875,247 parameters, 20,820,719 of
    them trained.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""

        def norm(x, name):
            return BatchNorm(self.axis_name, name=name)(x, train=train)

        x = 2.0 * images.astype(self.dtype) - 1.0
        for i, (features, strides) in enumerate(((32, 2), (64, 1)), start=1):
            conv = Conv(
                features,
                (3, 3),
                strides=(strides, strides),
                padding="VALID",
                use_bias=False,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            x = nn.relu(norm(conv(x), f"norm{i}"))
        for i, features in enumerate((128, 256, 728), start=1):
            module = DownModule(
                (features, features), i > 1, self.dtype, self.axis_name, name=f"entry{i}"
            )
            x = module(x, train=train)
        for i in range(1, 9):
            module = MiddleModule(self.dtype, self.axis_name, name=f"middle{i}")
            x = module(x, train=train)
        module = DownModule((728, 1024), True, self.dtype, self.axis_name, name="exit1")
        x = module(x, train=train)
        for i, features in enumerate((1536, 2048), start=3):
            conv = SeparableConv(features, self.dtype, name=f"conv{i}")
            x = nn.relu(norm(conv(x), f"norm{i}"))
        x = GlobalAvgPool(name="pool")(x)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class DownModule(nn.Module):
    """Two separable convolutions and a max-pool beside a 1x1 convolution, all halving the sides.

    Attributes:
      features: filters of the two separable convolutions; the shortcut has the second's.
      relu_first: whether a ReLU stands before the first separable convolution.
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    features: tuple[int, int]
    relu_first: bool
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to half the sides and `features[1]` channels."""

        def norm(x, name):
            return BatchNorm(self.axis_name, name=name)(x, train=train)

        conv = Conv(
            self.features[1],
            (1, 1),
            strides=(2, 2),
            use_bias=False,
            dtype=self.dtype,
            name="conv_shortcut",
        )
        shortcut = norm(conv(x), "norm_shortcut")
        for i, features in enumerate(self.features, start=1):
            if i > 1 or self.relu_first:
                x = nn.relu(x)
            x = norm(SeparableConv(features, self.dtype, name=f"conv{i}")(x), f"norm{i}")
        return MaxPool((3, 3), (2, 2), "SAME", name="pool")(x) + shortcut


class MiddleModule(nn.Module):
    """Three ReLU, separable convolution and BatchNorm in a row, added to their input.

    Attributes:
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to an array of the same shape."""
        shortcut = x
        for i in (1, 2, 3):
            x = SeparableConv(x.shape[-1], self.dtype, name=f"conv{i}")(nn.relu(x))
            x = BatchNorm(self.axis_name, name=f"norm{i}")(x, train=train)
        return x + shortcut
