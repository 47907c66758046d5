"""Layers every network is made of: Flax's own where they fit, over the project's operations."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from fer_jax import ops
from fer_jax.ops.depthwise import depthwise_conv
from fer_jax.ops.norm import per_channel

# He et al. 2015, eq. 10: the spread that keeps the variance of ReLU activations layer after layer.
he_normal = nn.initializers.he_normal()


def dirac(key: jax.Array, shape: tuple[int, int, int, int], dtype: DTypeLike) -> jax.Array:
    """Draws a kernel that hands its input on, and adds to it as :data:`he_normal` would.

    With `channels` inputs, the first `channels` filters copy one channel each, as far as there are
    so many; the others are He-normal. (Zagoruyko & Komodakis 2017 start so; the split into copies
    and others is Jordan 2024's, airbench.)

    Args:
      key: a random key.
      shape: `[height, width, channels, features]` of the kernel, the sides odd.
      dtype: of the kernel.

    Returns:
      The kernel.
    """
    height, width, channels, features = shape
    kernel = he_normal(key, shape, dtype)
    copies = min(channels, features)
    unit = jnp.eye(channels, copies, dtype=dtype)
    kernel = kernel.at[..., :copies].set(0)
    return kernel.at[height // 2, width // 2, :, :copies].set(unit)


Conv = functools.partial(
    nn.Conv, kernel_init=he_normal, conv_general_dilated=ops.conv_general_dilated
)
Dense = functools.partial(nn.Dense, kernel_init=he_normal)


class ConvRelu(nn.Module):
    """A convolution with bias and the ReLU that follows it, which a CPU computes in one go.

    Its parameters are those of `flax.linen.Conv`; kernels start He-normal, biases at 0.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel.
      strides: steps from window to window.
      padding: "VALID" or "SAME".
      dtype: of the activations.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, out_height, out_width, features]`."""
        return ops.conv_relu(*_conv_arrays(self, x), self.strides, self.padding)


class ConvReluMaxPool(nn.Module):
    """A convolution with strides of 1, ReLU and max-pooling, which a CPU computes in one go.

    Its parameters are those of :class:`ConvRelu`.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel.
      padding: "VALID" or "SAME", of the convolution.
      pool: height and width of a pooling window.
      pool_strides: steps from window to window.
      pool_name: what a table of layers calls the pooling.
      dtype: of the activations.
    """

    features: int
    kernel_size: tuple[int, int]
    padding: str = "SAME"
    pool: tuple[int, int] = (2, 2)
    pool_strides: tuple[int, int] = (2, 2)
    pool_name: str = "pool"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, out_height, out_width, features]`."""
        arrays = _conv_arrays(self, x)
        return ops.conv_relu_max_pool(*arrays, self.padding, self.pool, self.pool_strides)


def _conv_arrays(
    layer: ConvRelu | ConvReluMaxPool, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the images, and a layer's kernel and bias, in the type of its activations."""
    shape = (*layer.kernel_size, x.shape[-1], layer.features)
    kernel = layer.param("kernel", he_normal, shape, jnp.float32)
    bias = layer.param("bias", nn.initializers.zeros_init(), (layer.features,), jnp.float32)
    return x.astype(layer.dtype), kernel.astype(layer.dtype), bias.astype(layer.dtype)


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


class SeparableConv(nn.Module):
    """A 3x3 filter per channel, then a 1x1 convolution (Chollet 2017); SAME padding, no biases.

    Attributes:
      features: number of output channels.
      dtype: of the activations.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, features]`."""
        channels = x.shape[-1]
        depthwise = nn.Conv(
            channels,
            (3, 3),
            feature_group_count=channels,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal,
            conv_general_dilated=depthwise_conv,
            name="depthwise",
        )
        pointwise = Conv(self.features, (1, 1), use_bias=False, dtype=self.dtype, name="pointwise")
        return pointwise(depthwise(x))


class LocalResponseNorm(nn.Module):
    """Local response normalisation over channels (Krizhevsky et al. 2012, section 3.3).

    `x / (bias + alpha * sum of x**2 over the `size` channels around it) ** beta`; the defaults are
    that paper's.

    Attributes:
      size: channels summed over, an odd number.
      bias: the paper's k.
      alpha: weight of the sum.
      beta: exponent.
    """

    size: int = 5
    bias: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[batch, height, width, channels]`."""
        # A product with a band of ones sums over channels; shifted copies, and `**`, are slow on a
        # CPU: AlexNet's step with them takes 1.35 times as long.
        distance = jnp.abs(jnp.subtract.outer(*[jnp.arange(x.shape[-1])] * 2))
        total = jnp.square(x) @ (distance <= self.size // 2).astype(x.dtype)
        return x * jnp.exp(-self.beta * jnp.log(self.bias + self.alpha * total))


class Resize(nn.Module):
    """Enlarges images bilinearly, pixel centres at halves, as OpenCV does.

    Every network whose input is larger than the data's images starts with this layer.

    Attributes:
      side: height and width of the result.
    """

    side: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, side, side, channels]`."""
        shape = (x.shape[0], self.side, self.side, x.shape[-1])
        return jax.image.resize(x, shape, "bilinear")


class GlobalAvgPool(nn.Module):
    """Mean over height and width: `[batch, height, width, channels]` to `[batch, channels]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools `x`."""
        return _mean(x)


def _mean(x: jax.Array) -> jax.Array:
    """Means over height and width: `[batch, height, width, channels]` to `[batch, channels]`."""
    if x.dtype == jnp.bfloat16:
        # XLA 0.12 on a CPU makes one program of convolutions and this sum, which returns NaN.
        x = lax.optimization_barrier(x)
    return x.mean(axis=(1, 2))


class BlurPool(nn.Module):
    """Anti-aliased 2x2 max-pooling (Zhang 2019, MaxBlurPool with a 3x3 filter).

    The maximum of every 2x2 window, then the binomial filter (1, 2, 1) / 4 along both sides in
    steps of 2, edges repeated: sides halve, and an image moved by a pixel changes the result less.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` of even sides to half the sides."""
        x = ops.max_pool(x, (2, 2), strides=(1, 1))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        for axis in (1, 2):
            end = x.shape[axis]
            low, middle, high = (lax.slice_in_dim(x, i, end - 2 + i, 2, axis) for i in range(3))
            x = (low + 2 * middle + high) / 4
        return x


class SqueezeExcitation(nn.Module):
    """Weighs channels by what the whole image holds (Hu et al. 2018).

    Global average, a fully connected layer of a `reduction`th of the channels with ReLU, one of all
    channels with a sigmoid, whose results the input is multiplied with.

    Attributes:
      reduction: the paper's r, where it has 16; 8 for networks as narrow as those here.
      dtype: of the activations.
    """

    reduction: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to an array of the same shape."""
        channels = x.shape[-1]
        weights = Dense(channels // self.reduction, dtype=self.dtype, name="squeeze")(_mean(x))
        weights = Dense(channels, dtype=self.dtype, name="excite")(nn.relu(weights))
        return x * nn.sigmoid(weights)[:, None, None]


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
      axis_name: mesh axis the batch is sharded over; None outside `shard_map`.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drops units of `x`, `[batch, ...]` float, while training; passes it through otherwise."""
        if not train or self.rate == 0.0:
            return x
        positions = jnp.arange(len(x))
        if self.axis_name is not None and not self.is_initializing():
            positions += lax.axis_index(self.axis_name) * len(x)
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
      relu: whether ReLU follows, which a CPU then computes in one go, and its gradient.
      pool_name: what a table of layers calls the maximum over each 2x2 pixels that follows all
        that, behind the ReLU in the same go; None if it does not.
    """

    axis_name: str | None = None
    momentum: float = 0.99
    epsilon: float = 1e-3
    relu: bool = False
    pool_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`, `[batch, ..., channels]` float, over all axes but the last."""
        pooled = self.pool_name is not None
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        out = x.astype(jnp.float32)
        if train:
            initializing = self.is_initializing()
            axis_name = None if initializing else self.axis_name
            options = {"epsilon": self.epsilon, "axis_name": axis_name}
            if pooled and self.relu:
                out, *found = ops.batch_norm_relu_max_pool(out, scale, bias, **options)
                pooled = False
            else:
                out, *found = ops.batch_norm(out, scale, bias, relu=self.relu, **options)
            if not initializing:
                for running, now in zip((mean, var), found, strict=True):
                    running.value = self.momentum * running.value + (1 - self.momentum) * now
        else:
            factor = lax.rsqrt(var.value + self.epsilon) * scale
            mean_, factor, bias = (per_channel(out, v) for v in (mean.value, factor, bias))
            out = (out - mean_) * factor + bias
            out = nn.relu(out) if self.relu else out
        out = ops.max_pool_2x2(out) if pooled else out
        return out.astype(x.dtype)


# The layers that a table of a network shows, each as one row.
LAYERS = (
    nn.Conv,
    nn.Dense,
    ConvRelu,
    ConvReluMaxPool,
    SeparableConv,
    MaxPool,
    AvgPool,
    BlurPool,
    GlobalAvgPool,
    SqueezeExcitation,
    BatchNorm,
    LocalResponseNorm,
    Resize,
    Flatten,
    Dropout,
)
