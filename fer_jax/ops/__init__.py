"""Operations that are fast on a CPU, XLA's own elsewhere: what networks spend their time on."""

from fer_jax.ops.conv import conv_general_dilated, conv_relu, conv_relu_max_pool
from fer_jax.ops.depthwise import depthwise_conv
from fer_jax.ops.norm import batch_norm, batch_norm_relu_max_pool
from fer_jax.ops.pool import avg_pool, max_pool, max_pool_2x2

__all__ = [
    "avg_pool",
    "batch_norm",
    "batch_norm_relu_max_pool",
    "conv_general_dilated",
    "conv_relu",
    "conv_relu_max_pool",
    "depthwise_conv",
    "max_pool",
    "max_pool_2x2",
]
