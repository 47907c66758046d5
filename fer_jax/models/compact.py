"""A small strong network for 48x48 grey faces."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fer_jax.errors import ConfigError
from fer_jax.labels import NUM_CLASSES
from fer_jax.models.layers import (
    BatchNorm,
    BlurPool,
    Conv,
    Dense,
    Dropout,
    GlobalAvgPool,
    MaxPool,
    SqueezeExcitation,
    dirac,
    he_normal,
)

STAGES = 4


class Compact(nn.Module):
    """A VGG (Simonyan & Zisserman 2015) with BatchNorm, cut down to what a CPU can train.

    Four stages of two 3x3 convolutions (SAME padding, no biases), each followed by BatchNorm and
    ReLU; 2x2 max-pools between them; global average, dropout, the classes. 48-24-12-6; at a width
    of 32 the stages have 32, 64, 128 and 256 channels: 1,176,359 parameters, 1,174,439 of them
    trained, and 234.9 MFLOP an image. Takes images `[batch, 48, 48, 1]` float in [0, 1] and returns
    logits `[batch, num_classes]` float32.

    Attributes:
      num_classes: how many logits an image gets.
      width: channels of the first stage, a multiple of 16; each later stage has twice as many.
      residual: add a stage's first activations to its second convolution's (He et al. 2016).
      squeeze_excitation: weigh each stage's channels (:class:`layers.SqueezeExcitation`).
      blur_pool: blur before sub-sampling (:class:`layers.BlurPool`).
      dirac_init: start convolutions as copies of their input (:func:`layers.dirac`).
      dropout: share of the averaged features dropped.
      dtype: of the activations.
      axis_name: mesh axis the batch is sharded over.
    """

    num_classes: int = NUM_CLASSES
    width: int = 32
    residual: bool = False
    squeeze_excitation: bool = False
    blur_pool: bool = False
    dirac_init: bool = False
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits; see the class's docstring for shapes."""
        if self.width < 16 or self.width % 16:
            raise ConfigError(f"config.model.width is {self.width}; it must be 16, 32, 48, ...")

        def conv_norm(x, features, name, *, relu, pool_name=None):
            conv = Conv(
                features,
                (3, 3),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=dirac if self.dirac_init else he_normal,
                name=f"conv{name}",
            )
            norm = BatchNorm(self.axis_name, relu=relu, pool_name=pool_name, name=f"norm{name}")
            return norm(conv(x), train=train)

        plain = not (self.residual or self.squeeze_excitation)
        x = images.astype(self.dtype)
        for stage in range(1, STAGES + 1):
            features = self.width * 2 ** (stage - 1)
            pool_name = f"pool{stage}" if stage < STAGES else None
            # Where nothing comes between, it is one with the normalisation.
            with_norm = pool_name if plain and not self.blur_pool else None
            shortcut = x = conv_norm(x, features, f"{stage}_1", relu=True)
            x = conv_norm(x, features, f"{stage}_2", relu=plain, pool_name=with_norm)
            if self.squeeze_excitation:
                x = SqueezeExcitation(dtype=self.dtype, name=f"excite{stage}")(x)
            if not plain:
                x = nn.relu(x + shortcut if self.residual else x)
            if pool_name and self.blur_pool:
                x = BlurPool(name=pool_name)(x)
            elif pool_name and not with_norm:
                x = MaxPool((2, 2), (2, 2), name=pool_name)(x)
        x = GlobalAvgPool(name="pool")(x)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
