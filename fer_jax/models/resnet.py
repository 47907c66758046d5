"""ResNet-50 and ResNet-18 at 48x48.

Networks take images `[batch, 48, 48, 1]` float in [0, 1] and return logits
`[batch, num_classes]` float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import BatchNorm, Conv, Dense, GlobalAvgPool, MaxPool

# He et al. 2016 train with a momentum of 0.9 and add 1e-5 to the variance.
_norm = functools.partial(BatchNorm, momentum=0.9, epsilon=1e-5)


class ResNet50(nn.Module):
    """He et al. 2016, table 1, which Gajarla & Gupta 2015 fine-tuned on Flickr images.

    Established: all of it, in the first version (a block's stride in its first 1x1 convolution); no
    biases before BatchNorm. Their pretraining on ImageNet is left out. Changed for 48x48: only the
    input's one channel and the seven classes; the stages see 12x12, 6x6, 3x3 and 2x2 maps.
    23,569,223 parameters, 23,516,103 of them trained.
    """

    num_classes: int = NUM_CLASSES
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        conv = Conv(
            64,
            (7, 7),
            strides=(2, 2),
            padding=((3, 3), (3, 3)),
            use_bias=False,
            dtype=self.dtype,
            name="conv1",
        )
        x = _norm(self.axis_name, relu=True, name="norm1")(conv(x), train=train)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros, the least a ReLU gives
        x = MaxPool((3, 3), (2, 2), name="pool1")(x)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = Bottleneck(
                    features=64 * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 2}_block{block + 1}",
                )(x, train=train)
        x = GlobalAvgPool(name="pool5")(x)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class ResNet18(nn.Module):
    """He et al. 2016 at 18 layers for small images: a network for a GPU.

    Its stem is that of their CIFAR networks, one 3x3 convolution without stride or pooling, so that
    the four stages of two blocks see 48x48, 24x24, 12x12 and 6x6 maps. Then global average and the
    classes. At 64 channels in the first stage 11,180,871 parameters, 11,171,271 of them trained.

    Attributes:
      num_classes: how many logits an image gets.
      width: channels of the first stage; each later stage has twice as many.
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    num_classes: int = NUM_CLASSES
    width: int = 64
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the module's docstring for shapes."""
        x = images.astype(self.dtype)
        x = Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype, name="conv1")(x)
        x = _norm(self.axis_name, relu=True, name="norm1")(x, train=train)
        for stage in range(4):
            for block in range(2):
                x = BasicBlock(
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 2}_block{block + 1}",
                )(x, train=train)
        x = GlobalAvgPool(name="pool")(x)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class BasicBlock(nn.Module):
    """He et al. 2016, figure 5 left: two 3x3 convolutions beside a shortcut.

    Attributes:
      features: filters of both.
      strides: of the first convolution and of the shortcut.
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    features: int
    strides: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `features` channels."""
        conv_norm = functools.partial(_conv_norm, self, train)
        shortcut = x
        if x.shape[-1] != self.features or self.strides != 1:
            shortcut = conv_norm(x, self.features, 1, self.strides, "_shortcut")
        x = conv_norm(x, self.features, 3, self.strides, "1", relu=True)
        return nn.relu(conv_norm(x, self.features, 3, 1, "2") + shortcut)


class Bottleneck(nn.Module):
    """He et al. 2016, figure 5 right: 1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Attributes:
      features: filters of the first two convolutions; the third has four times as many.
      strides: of the first convolution and of the shortcut.
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    features: int
    strides: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `4 * features` channels."""
        conv_norm = functools.partial(_conv_norm, self, train)
        out = 4 * self.features
        shortcut = x
        if x.shape[-1] != out or self.strides != 1:
            shortcut = conv_norm(x, out, 1, self.strides, "_shortcut")
        x = conv_norm(x, self.features, 1, self.strides, "1", relu=True)
        x = conv_norm(x, self.features, 3, 1, "2", relu=True)
        return nn.relu(conv_norm(x, out, 1, 1, "3") + shortcut)


def _conv_norm(
    block: BasicBlock | Bottleneck,
    train: bool,
    x: jax.Array,
    features: int,
    size: int,
    strides: int,
    name: str,
    *,
    relu: bool = False,
) -> jax.Array:
    """A block's convolution, square, and the BatchNorm, and perhaps ReLU, that follow it."""
    conv = Conv(
        features,
        (size, size),
        strides=(strides, strides),
        use_bias=False,
        dtype=block.dtype,
        name=f"conv{name}",
    )
    return _norm(block.axis_name, relu=relu, name=f"norm{name}")(conv(x), train=train)
