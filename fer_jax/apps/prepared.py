"""A trained network prepared to be asked about one image at a time on a CPU.

Its 3x3 convolutions (`flax.linen.Conv`) use kernels that are transformed once
(:mod:`fer_jax.ops.winograd`), for the library in C++ if that is loaded by then, for XLA otherwise.
A batch normalisation behind one of them multiplies and adds what never changes: it becomes part of
the kernel and of the bias, and its ReLU part of the convolution. Networks need not know: Flax hands
each call of a layer to what intercepts it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from fer_jax import ops
from fer_jax.labels import SIDE
from fer_jax.models.layers import BatchNorm
from fer_jax.ops import native, winograd
from fer_jax.steps import to_float

_COLLECTION = "winograd"  # kernels and biases as they are used, by the layers' names
# With fewer channels, such as an image's one, little is multiplied and much transformed.
_MIN_CHANNELS = 16

_Path = tuple[str, ...]  # of a layer


class _Norm(NamedTuple):
    """The batch normalisation behind a convolution."""

    path: _Path
    epsilon: float
    relu: bool


def make_predict_one(model: nn.Module, variables: Any) -> Callable[[np.ndarray], jax.Array]:
    """Builds the function that a network is asked with; it compiles when first called.

    Args:
      model: from `create_model`. What a convolution gives goes nowhere but into the batch
        normalisation behind it, if there is one.
      variables: of the trained network.

    Returns:
      A function (images `[1, height, width, 1]` uint8) -> log-probabilities `[1, classes]` float32.
    """
    plan = _plan(model, variables)
    norms = {norm.path for norm in plan.values() if norm}

    def convolve(call, args, kwargs, context):
        layer = context.module
        if layer.path in norms:
            return args[0] if layer.pool_name is None else ops.max_pool_2x2(args[0])
        if layer.path not in plan:
            return call(*args, **kwargs)
        kernel, bias = (layer.get_variable(_COLLECTION, name) for name in ("kernel", "bias"))
        norm = plan[layer.path]
        relu = norm is not None and norm.relu
        return winograd.convolution(args[0], kernel, bias, layer.padding, relu)

    @jax.jit
    def predict_one(variables: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(convolve):
            logits: Any = model.apply(variables, to_float(images), train=False)
        return jax.nn.log_softmax(logits)

    ready = {**variables, _COLLECTION: _transformed(variables, plan)}
    return functools.partial(predict_one, ready)


def _plan(model: nn.Module, variables: Any) -> dict[_Path, _Norm | None]:
    """Returns which convolutions are to use a transformed kernel, and what normalises each."""
    plan: dict[_Path, _Norm | None] = {}
    results: dict[int, tuple[_Path, jax.Array]] = {}  # kept, so that no other gets its id

    def note(call, args, kwargs, context):
        layer, out = context.module, call(*args, **kwargs)
        if isinstance(layer, BatchNorm) and id(args[0]) in results:
            plan[results[id(args[0])][0]] = _Norm(layer.path, layer.epsilon, layer.relu)
        elif isinstance(layer, nn.Conv) and _is_plain(layer, args[0].shape[-1]):
            plan[layer.path] = None
            results[id(out)] = layer.path, out
        return out

    def trace(variables, images):
        with nn.intercept_methods(note):
            model.apply(variables, images, train=False)

    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.float32))
    return plan


def _is_plain(layer: nn.Conv, channels: int) -> bool:
    """Whether :func:`fer_jax.ops.winograd.convolution` does what a layer does, and pays."""
    steps = (layer.strides, layer.input_dilation, layer.kernel_dilation)
    return (
        layer.kernel_size == winograd.KERNEL
        and channels >= _MIN_CHANNELS
        and layer.padding in ("SAME", "VALID")
        and all(step in (None, 1, (1, 1)) for step in steps)
        and layer.feature_group_count == 1
        and layer.mask is None
        and layer.dtype in (None, jnp.float32)
    )


def _transformed(variables: Any, plan: dict[_Path, _Norm | None]) -> Any:
    """Returns the planned convolutions' kernels and biases, what normalises them included."""
    params: dict[_Path, Any] = flatten_dict(variables["params"])
    statistics: dict[_Path, Any] = flatten_dict(variables.get("batch_stats", {}))
    found: dict[_Path, jax.Array] = {}
    for path, norm in plan.items():
        kernel = np.asarray(params[*path, "kernel"])
        bias = np.asarray(params.get((*path, "bias"), np.zeros(kernel.shape[3], np.float32)))
        if norm:
            spread = np.sqrt(np.asarray(statistics[*norm.path, "var"]) + norm.epsilon)
            factor = np.asarray(params[*norm.path, "scale"]) / spread
            kernel = kernel * factor
            bias = (bias - np.asarray(statistics[*norm.path, "mean"])) * factor
            bias = bias + np.asarray(params[*norm.path, "bias"])
        panel = native.panel() if native.fits_transformed(*kernel.shape[2:]) else None
        found[*path, "kernel"] = jnp.asarray(winograd.transform(kernel, panel))
        found[*path, "bias"] = jnp.asarray(bias)
    return unflatten_dict(found)
