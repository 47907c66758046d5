"""What a network is made of: its layers, their output shapes, parameters and FLOPs."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fer_jax.labels import IMAGE_SHAPE
from fer_jax.models.layers import LAYERS, BatchNorm, ConvRelu, ConvReluMaxPool

_IMAGES = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


class LayerRow(NamedTuple):
    """One row of a layer table."""

    name: str  # path of the layer in the network, such as "module1/conv2"
    kind: str  # class of the layer, such as "Conv"
    shape: tuple[int, ...]  # of its output for one image, without the batch
    parameters: int  # trained ones and running statistics


def layer_table(model: nn.Module) -> list[LayerRow]:
    """Lists the layers of a network in the order they are called, as Keras's summary does.

    Heads that only training uses are among them. Nothing is computed: shapes alone are traced.

    Args:
      model: a network that :func:`fer_jax.models.create_model` builds.

    Returns:
      A row for each convolution, fully connected layer, pooling, flattening, normalisation and
      dropout; activations, sums and concatenations have none. A layer called twice has its
      parameters in its first row; those of layers not known here are summed in a last row `other`.
    """
    rows: list[LayerRow] = []
    counted = set()
    inside = []  # the layer that is running; what it calls is part of it

    def record(call, args, kwargs, context):
        module = context.module
        if inside or context.method_name != "__call__" or not isinstance(module, LAYERS):
            return call(*args, **kwargs)
        inside.append(module)
        output = call(*args, **kwargs)
        inside.pop()
        name = "/".join(module.path)
        size = 0 if name in counted else _size(module.variables)
        counted.add(name)
        kind = type(module).__name__
        pool_name = module.pool_name if isinstance(module, ConvReluMaxPool | BatchNorm) else None
        if pool_name is not None:
            if isinstance(module, ConvReluMaxPool):
                kind, shape = "ConvRelu", _conv_shape(module, args[0])
            else:
                shape = args[0].shape[1:]
            rows.append(LayerRow(name, kind, shape, size))
            name = "/".join((*module.path[:-1], pool_name))
            kind, size = "MaxPool", 0
        rows.append(LayerRow(name, kind, output.shape[1:], size))
        return output

    with nn.intercept_methods(record):
        variables = variable_shapes(model)
    rest = _size(variables) - sum(row.parameters for row in rows)
    return [*rows, LayerRow("other", "", (), rest)] if rest else rows


def flops(model: nn.Module) -> int:
    """Counts the floating-point operations of one image's forward pass, in evaluation mode.

    Convolutions and fully connected layers are counted, a multiply-add as two operations and
    padding as if it were image; biases, poolings, normalisation and activations are left out.
    """
    counts = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        is_layer = isinstance(context.module, nn.Conv | nn.Dense | ConvRelu | ConvReluMaxPool)
        if is_layer and context.method_name == "__call__":
            kernel = context.module.variables["params"]["kernel"]
            shape = output.shape[1:]
            if isinstance(context.module, ConvReluMaxPool):
                shape = _conv_shape(context.module, args[0])
            counts.append(2 * math.prod(shape[:-1]) * kernel.size)
        return output

    def forward(variables, images):
        return model.apply(variables, images, train=False)

    variables = variable_shapes(model)
    with nn.intercept_methods(record):
        jax.eval_shape(forward, variables, _IMAGES)
    return sum(counts)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Returns the number of all parameters, running statistics included, and of trained ones."""
    variables = variable_shapes(model)
    return _size(variables), _size(variables["params"])


def variable_shapes(model: nn.Module) -> dict:
    """Returns the network's variables as `jax.ShapeDtypeStruct`; nothing is allocated."""

    def init(key, images):
        return model.init({"params": key, "dropout": key}, images, train=False)

    return jax.eval_shape(init, _KEY, _IMAGES)


def format_table(model: nn.Module) -> str:
    """Returns the layer table, the parameter counts and the FLOPs as text for a terminal."""
    rows = [("Layer", "Kind", "Output shape", "Parameters")]
    for row in layer_table(model):
        shape = " x ".join(str(side) for side in row.shape)
        rows.append((row.name, row.kind, shape, f"{row.parameters:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {count:>{widths[3]}}"
        for name, kind, shape, count in rows
    ]
    rule = "-" * len(lines[0])
    total, trained = parameter_counts(model)
    totals = [
        f"Parameters: {total:,} (trained: {trained:,}, running statistics: {total - trained:,})",
        f"Forward pass: {flops(model) / 1e6:,.1f} MFLOP an image (a multiply-add is two)",
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *totals])


def _conv_shape(module: ConvReluMaxPool, images: jax.Array) -> tuple[int, ...]:
    """Returns the shape of what a layer pools, for one image."""
    kernel = module.variables["params"]["kernel"].astype(images.dtype)

    def conv(images):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (1, 1), module.padding, None, None, numbers)

    return jax.eval_shape(conv, images).shape[1:]


def _size(tree) -> int:
    """Returns the number of array elements in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
