"""AlexNet and its variant CaffeNet at 48x48.

Networks take images `[batch, 48, 48, 1]` float in [0, 1] and return logits
`[batch, num_classes]` float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import (
    Conv,
    ConvRelu,
    Dense,
    Dropout,
    Flatten,
    LocalResponseNorm,
    MaxPool,
)


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012, which Giannopoulos et al. 2018 trained on FER2013.

    Established: conv 96 11x11, conv 256 5x5, conv 384, 384, 256 3x3, of which the second, fourth
    and fifth see only their own half of the channels; local response normalisation and 3x3 max-pool
    stride 2 after the first two, a pool after the fifth; FC 4096, FC 4096 (ReLU, dropout 0.5), the
    classes. Changed for 48x48: the first convolution has SAME padding and stride 2 instead of 4
    (with 4 the maps would run out before the last pool), so that fc6 reads 2x2x256 instead of
    6x6x256; one input channel. Chosen: He-normal weights and zero biases, where the original drew
    from N(0, 0.01) and set some biases to 1. 48-24-11-5-2; 23,319,239 parameters.

    Attributes:
      pool_first: pool before normalising, as CaffeNet does.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    pool_first: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""

        def pool_and_norm(x, i):
            pool = MaxPool((3, 3), (2, 2), name=f"pool{i}")
            norm = LocalResponseNorm(name=f"norm{i}")
            return norm(pool(x)) if self.pool_first else pool(norm(x))

        x = images.astype(self.dtype)
        x = Conv(96, (11, 11), strides=(2, 2), dtype=self.dtype, name="conv1")(x)
        x = pool_and_norm(nn.relu(x), 1)
        x = nn.relu(_TwoTowers(256, 5, self.dtype, name="conv2")(x))
        x = pool_and_norm(x, 2)
        x = ConvRelu(384, (3, 3), dtype=self.dtype, name="conv3")(x)
        x = nn.relu(_TwoTowers(384, 3, self.dtype, name="conv4")(x))
        x = nn.relu(_TwoTowers(256, 3, self.dtype, name="conv5")(x))
        x = MaxPool((3, 3), (2, 2), name="pool5")(x)
        x = Flatten(name="flatten")(x)
        for i in (6, 7):
            x = nn.relu(Dense(4096, dtype=self.dtype, name=f"fc{i}")(x))
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{i}")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class CaffeNet(AlexNet):
    """CaffeNet, for Jindal & Singh 2015: five convolutions, two fully connected layers, softmax.

    Established: those layers. Chosen: that they are those of CaffeNet (Jia et al. 2014), which is
    :class:`AlexNet` with each pool before its normalisation and has the same 23,319,239 parameters.
    Their pretraining on ImageNet and fine-tuning on Flickr images is left out. Changed for 48x48:
    what :class:`AlexNet` says.
    """

    pool_first: bool = True


class _TwoTowers(nn.Module):
    """A convolution in two groups, each from one half of the channels to one half of the filters.

    Written as two convolutions: XLA's grouped ones have slow gradients on CPU.
    """

    features: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, features]`."""
        half, size = self.features // 2, (self.size, self.size)
        towers = [
            Conv(half, size, dtype=self.dtype, name=f"tower{i}")(part)
            for i, part in enumerate(jnp.split(x, 2, axis=-1), start=1)
        ]
        return jnp.concatenate(towers, axis=-1)
