"""What every network must be, checked when one is created."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fer_jax.errors import ConfigError
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.models import layers

_BATCH = 2
_AXIS = "any axis"
_SHARED = (layers.BatchNorm, layers.Dropout)  # layers that must know the global batch
_LOCAL = {nn.BatchNorm: "BatchNorm", nn.Dropout: "Dropout"}  # Flax's, which do not


@functools.cache
def check(model: nn.Module, num_classes: int) -> None:
    """Checks that a network keeps to what training and evaluation rely on.

    It takes `(images, *, train)`, images `[batch, 48, 48, 1]` float32, and returns logits
    `[batch, num_classes]` float32. Its variables are `params` and perhaps `batch_stats`, float32.
    What depends on the global batch is this project's BatchNorm and Dropout, which get the
    network's field `axis_name`. Nothing is computed: shapes alone are traced, in evaluation mode.

    Raises:
      ConfigError: one line that names the network and what to change.
    """
    problem = _wrong_signature(model) or _wrong_trace(model, num_classes)
    if problem:
        raise ConfigError(
            f"the network {type(model).__name__} {problem}; "
            "see `Add a network` in docs/architecture.md"
        )


def _wrong_signature(model: nn.Module) -> str | None:
    signature = inspect.signature(type(model).__call__)
    _, *parameters = signature.parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    expected = [inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY]
    if kinds == expected and parameters[1].name == "train":
        return None
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return f"is called with {inspect.Signature(bare)}; it must be (self, images, *, train)"


def _wrong_trace(model: nn.Module, num_classes: int) -> str | None:
    has_axis = hasattr(model, "axis_name")
    problems: list[str] = []
    inside: list[nn.Module] = []  # our layer that is running; what it calls is its own matter

    def watch(call, args, kwargs, context):
        module = context.module
        if inside or context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join(module.path)
        for kind, ours in _LOCAL.items():
            if isinstance(module, kind):
                problems.append(
                    f"uses flax.linen.{ours} (`{name}`), which sees only each device's share of a "
                    f"batch; use fer_jax.models.layers.{ours}"
                )
        if not isinstance(module, _SHARED):
            return call(*args, **kwargs)
        if not has_axis:
            problems.append(
                f"has no field `axis_name`, which its `{name}` needs to see the global batch"
            )
        elif module.axis_name != _AXIS:
            problems.append(f"does not pass its `axis_name` on to `{name}`")
        inside.append(module)
        output = call(*args, **kwargs)
        inside.pop()
        return output

    network = model.clone(axis_name=_AXIS) if has_axis else model

    def init(key, images) -> Any:
        return network.init_with_output({"params": key, "dropout": key}, images, train=False)

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((_BATCH, *IMAGE_SHAPE), jnp.float32)
    with nn.intercept_methods(watch):
        logits, variables = jax.eval_shape(init, key, images)
    if problems:
        return problems[0]
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if (shape, dtype) != ((_BATCH, num_classes), jnp.float32):
        returned = type(logits).__name__ if shape is None else f"{dtype} {list(shape)}"
        return (
            f"returns {returned} for {_BATCH} images; it must be float32 [{_BATCH}, {num_classes}]"
            " (its fields `num_classes` and `dtype` say which)"
        )
    others = sorted({*variables} - {"params", "batch_stats"})
    if others:
        return f"has variables {', '.join(others)}; only params and batch_stats are kept"
    for path, leaf in jax.tree.leaves_with_path(variables):
        if leaf.dtype != jnp.float32:
            return f"has {leaf.dtype} variables ({jax.tree_util.keystr(path)}); use float32"
    return None
