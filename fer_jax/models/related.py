"""Small networks of the paper's related work: Gudi's, Fathallah's, the PCNN and the fully-CNN.

The large stock ones are in `alexnet`, `googlenet`, `resnet` and `xception`. Every network takes
images `[batch, 48, 48, 1]` float in [0, 1] and returns logits `[batch, num_classes]` float32.
"Chosen" in a docstring marks what no source that could be read says. Weights start He-normal
everywhere, whatever the source did.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    ConvRelu,
    ConvReluMaxPool,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LocalResponseNorm,
    MaxPool,
)


class Gudi(nn.Module):
    """Gudi et al. 2015 as Moran 2019 trained it: three convolutions, one fully connected layer.

    Established, from the code that circulates for it: conv 5x5 64, max 3x3 stride 2, conv 5x5 64,
    max 3x3 stride 2, conv 4x4 128, dropout, FC 3072, FC 7, SAME padding, ReLU. That code's
    `dropout(0.3)` names the share that is *kept*, so the rate is 0.7. It was made for 48x48 images
    of one channel: nothing had to change. 56,883,015 parameters.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.7
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        for i in (1, 2):
            x = ConvRelu(64, (5, 5), dtype=self.dtype, name=f"conv{i}")(x)
            x = MaxPool((3, 3), (2, 2), "SAME", name=f"pool{i}")(x)
        x = ConvRelu(128, (4, 4), dtype=self.dtype, name="conv3")(x)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        x = Flatten(name="flatten")(x)
        x = nn.relu(Dense(3072, dtype=self.dtype, name="dense1")(x))
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Fathallah(nn.Module):
    """Fathallah et al. 2017: four convolutions, three max-pools, a fully connected layer, softmax.

    Established: the kinds and numbers of layers. Chosen: 3x3 filters with SAME padding, 32, 64,
    128 and 128 of them, 2x2 pools after the first, second and fourth convolution, ReLU, FC 256 with
    dropout. Its six classes became seven. 1,421,959 parameters.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        conv = functools.partial(ConvReluMaxPool, kernel_size=(3, 3), dtype=self.dtype)
        x = conv(32, name="conv1", pool_name="pool1")(x)
        x = conv(64, name="conv2", pool_name="pool2")(x)
        x = ConvRelu(128, (3, 3), dtype=self.dtype, name="conv3")(x)
        x = conv(128, name="conv4", pool_name="pool3")(x)
        x = Flatten(name="flatten")(x)
        x = nn.relu(Dense(256, dtype=self.dtype, name="dense1")(x))
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class PCNN(nn.Module):
    """You et al. 2015 (AAAI): two convolutions, four fully connected layers.

    Established: conv 96 11x11 stride 4 and conv 256 5x5 stride 2, each with max-pool and local
    response normalisation, FC 512, FC 512, FC 24, the classes. Its progressive training is no
    property of the network. Chosen: ReLU, 3x3 pools with stride 2 as in AlexNet, pool before
    normalisation, dropout after the two FC of 512. Changed for 48x48: the first stride is 2 instead
    of 4 (12x12 maps would leave nothing to pool), the input has one channel. 48-24-11-6-2,
    flattened to 1024; 1,426,311 parameters.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        for i, (features, size) in enumerate(((96, 11), (256, 5)), start=1):
            conv = ConvRelu(
                features, (size, size), strides=(2, 2), dtype=self.dtype, name=f"conv{i}"
            )
            x = MaxPool((3, 3), (2, 2), name=f"pool{i}")(conv(x))
            x = LocalResponseNorm(name=f"norm{i}")(x)
        x = Flatten(name="flatten")(x)
        for i in (1, 2):
            x = nn.relu(Dense(512, dtype=self.dtype, name=f"dense{i}")(x))
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{i}")(x, train=train)
        x = nn.relu(Dense(24, dtype=self.dtype, name="dense3")(x))
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class FullyCNN(nn.Module):
    """Arriaga et al. 2017, the sequential fully-CNN that Nishchal et al. 2018 evaluated.

    Established: all of it. Four stages of two convolutions (16 7x7, 32 5x5, 64 3x3, 128 3x3), each
    followed by BatchNorm, ReLU only after the second one, then 2x2 average pooling and dropout 0.5;
    conv 256 3x3 with BatchNorm and no ReLU, conv 7 3x3, global average. SAME padding, biases. It
    was made for 48x48 images of one channel. 642,935 parameters, 641,463 of them trained.
    """

    num_classes: int = NUM_CLASSES
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""

        def conv_norm(x, features, size, layer):
            x = Conv(features, (size, size), dtype=self.dtype, name=f"conv{layer}")(x)
            return BatchNorm(self.axis_name, name=f"norm{layer}")(x, train=train)

        x = images.astype(self.dtype)
        for stage, (features, size) in enumerate(((16, 7), (32, 5), (64, 3), (128, 3))):
            x = conv_norm(x, features, size, 2 * stage + 1)
            x = nn.relu(conv_norm(x, features, size, 2 * stage + 2))
            x = AvgPool((2, 2), (2, 2), name=f"pool{stage + 1}")(x)
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{stage + 1}")(x, train=train)
        x = conv_norm(x, 256, 3, 9)
        x = Conv(self.num_classes, (3, 3), dtype=self.dtype, name="conv10")(x)
        return GlobalAvgPool(name="pool5")(x).astype(jnp.float32)
