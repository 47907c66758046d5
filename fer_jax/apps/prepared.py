"""A trained network prepared to be asked about one image at a time on a CPU.

Its 3x3 convolutions use kernels that are transformed once (:mod:`fer_jax.ops.winograd`), for the
library in C++ if that is loaded by then, for XLA otherwise. They stand beside the parameters as a
collection of their own. Networks need not know: Flax hands each call of a layer to what intercepts
it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from fer_jax.ops import native, winograd
from fer_jax.steps import to_float

_COLLECTION = "winograd"
# With fewer channels, such as an image's one, little is multiplied and much transformed.
_MIN_CHANNELS = 16


def prepare(variables: Any) -> Any:
    """Returns a network's variables with its kernels of 3x3 transformed as well."""
    params: dict[tuple[str, ...], Any] = flatten_dict(variables["params"])
    transformed = {
        path: jnp.asarray(winograd.transform(np.asarray(kernel), _panel(*kernel.shape[-2:])))
        for path, kernel in params.items()
        if path[-1] == "kernel"
        and kernel.shape[:-2] == winograd.KERNEL
        and kernel.shape[-2] >= _MIN_CHANNELS
    }
    return {**variables, _COLLECTION: unflatten_dict(transformed)}


def _panel(channels: int, features: int) -> int | None:
    return native.panel() if native.fits_transformed(channels, features) else None


def make_predict_one(model: nn.Module) -> Callable[[Any, np.ndarray], jax.Array]:
    """Builds the function that a prepared network is asked with; it compiles when first called.

    Args:
      model: from `create_model`.

    Returns:
      A function (variables from :func:`prepare`, images `[1, height, width, 1]` uint8) ->
      log-probabilities `[1, classes]` float32.
    """

    @jax.jit
    def predict_one(variables: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(_convolve):
            logits: Any = model.apply(variables, to_float(images), train=False)
        return jax.nn.log_softmax(logits)

    return predict_one


def _convolve(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Convolves with a layer's transformed kernel if that is what the layer does."""
    layer = context.module
    if not (isinstance(layer, nn.Conv) and _is_plain(layer)):
        return call(*args, **kwargs)
    if not layer.has_variable(_COLLECTION, "kernel"):
        return call(*args, **kwargs)
    padding: Any = layer.padding
    bias = layer.get_variable("params", "bias") if layer.use_bias else jnp.zeros(layer.features)
    return winograd.convolution(args[0], layer.get_variable(_COLLECTION, "kernel"), bias, padding)


def _is_plain(layer: nn.Conv) -> bool:
    """Whether a layer does what :func:`fer_jax.ops.winograd.convolution` does."""
    steps = (layer.strides, layer.input_dilation, layer.kernel_dilation)
    return (
        layer.padding in ("SAME", "VALID")
        and all(step in (None, 1, (1, 1)) for step in steps)
        and layer.feature_group_count == 1
        and layer.mask is None
        and layer.dtype in (None, jnp.float32)
    )
