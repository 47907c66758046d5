"""A network's forward pass as a list of XLA's plain operations, which other formats are made of."""

import contextlib
from typing import Any

import jax
import jax.core
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export

from fer_jax import seal
from fer_jax.errors import WeightsError
from fer_jax.labels import SIDE
from fer_jax.steps import to_float

INPUT, OUTPUTS = "images", ("probabilities", "logits")


def images_spec() -> jax.ShapeDtypeStruct:
    """Returns what a network is asked: `[n, 48, 48]` uint8, any number of images n."""
    return jax.ShapeDtypeStruct((*export.symbolic_shape("n"), SIDE, SIDE), jnp.uint8)


def forward(model: nn.Module, variables: Any, images: jax.ShapeDtypeStruct) -> Any:
    """Traces a trained network on the pixels of grey images, in float32.

    Calls are inlined, of operations that a platform has its own version of the general one is
    taken, and what does not depend on the images is computed.

    Args:
      model: from `create_model`.
      variables: as `model.apply` takes them.
      images: from :func:`images_spec`.

    Returns:
      A `jax.extend.core.ClosedJaxpr` from images to logits `[n, classes]` float32.

    Raises:
      WeightsError: if weights are not finite.
    """
    if hasattr(model, "dtype"):
        model = model.clone(dtype=jnp.float32)

    def logits(images):
        return model.apply(variables, to_float(images[..., None]), train=False)

    traced = jax.make_jaxpr(logits)(images)
    plain = jax.make_jaxpr(lambda images: _evaluate(traced, [images])[0])(images)
    if not all(np.isfinite(constant).all() for constant in plain.consts):
        raise WeightsError(f"the weights of this {type(model).__name__} are not all finite")
    return plain


def describe(metadata: dict[str, Any], kernels: str = "float32") -> dict[str, Any]:
    """Returns what an exported file says of itself.

    Args:
      metadata: of the weights, as `fer_jax.weights.store.load` returns it.
      kernels: how the file stores them.

    Returns:
      The metadata with `input`, `output` and `kernels` of the file, and without what is true of the
      weights' own file alone.
    """
    kept = {k: v for k, v in metadata.items() if k not in ("format", "preprocessing", seal.KEY)}
    return kept | {
        "kernels": kernels,
        "input": f"{INPUT}: uint8 [n, {SIDE}, {SIDE}], grey faces, any number n; scaled inside",
        "output": f"{OUTPUTS[0]}: float32 [n, classes], the softmax of {OUTPUTS[1]}; "
        f"{OUTPUTS[1]}: float32 [n, classes]",
    }


def _evaluate(closed: Any, arguments: list[Any]) -> list[Any]:
    """Evaluates a jaxpr, inlining what it calls."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":  # of `lax.platform_dependent`; None is the default's
        return [params["platforms"].index(None)]
    if name == "cond" and isinstance(inputs[0], int):
        return _evaluate(params["branches"][inputs[0]], inputs[1:])
    if name == "concatenate":  # `jnp.pad` writes parts without elements too
        inputs = [x for x in inputs if x.shape[params["dimension"]] != 0]
        if len(inputs) == 1:
            return inputs
    if name in ("jit", "custom_jvp_call", "custom_vjp_call"):
        return _evaluate(params["jaxpr" if name == "jit" else "call_jaxpr"], inputs)
    constant = not any(isinstance(x, jax.core.Tracer) for x in inputs) and all(
        isinstance(size, int) for out in equation.outvars for size in out.aval.shape
    )
    with jax.ensure_compile_time_eval() if constant else contextlib.nullcontext():
        outputs = equation.primitive.bind(*inputs, **params)
    return outputs if equation.primitive.multiple_results else [outputs]
