"""The networks, by name. This package is the only place that knows Flax modules."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from fer_jax.models import paper
from fer_jax.models.layers import BATCH_AXIS
from fer_jax.models.paper import NUM_CLASSES

IMAGE_SHAPE = (48, 48, 1)  # height, width, channels of every image

__all__ = ["BATCH_AXIS", "IMAGE_SHAPE", "MODELS", "NUM_CLASSES", "create_model"]


def _arch01(config: ConfigDict) -> nn.Module:
    return paper.Architecture01(dropout=config.dropout, dtype=jnp.dtype(config.dtype))


def _arch02(config: ConfigDict) -> nn.Module:
    return paper.Architecture02(dropout=config.dropout, dtype=jnp.dtype(config.dtype))


def _arch03(config: ConfigDict) -> nn.Module:
    return paper.Architecture03(dtype=jnp.dtype(config.dtype))


def _family(config: ConfigDict) -> nn.Module:
    if config.conv_layers is None or config.hidden_layers is None:
        raise ValueError("model `family` needs config.model.conv_layers and .hidden_layers")
    paper.family_stages(config.conv_layers)
    if config.hidden_layers not in (0, 1, 2):
        raise ValueError(f"config.model.hidden_layers is {config.hidden_layers}; it must be 0 to 2")
    return paper.Family(
        config.conv_layers, config.hidden_layers, config.dropout, jnp.dtype(config.dtype)
    )


MODELS: dict[str, Callable[[ConfigDict], nn.Module]] = {
    "arch01": _arch01,
    "arch02": _arch02,
    "arch03": _arch03,
    "family": _family,
}


def create_model(config: ConfigDict) -> nn.Module:
    """Builds the network that `config.model` names.

    Every network is called as `model.apply(variables, images, train=..., positions=...)`:
    images `[batch, 48, 48, 1]` float32 in [0, 1], positions `[batch]` int32 (each example's place
    in the global batch, needed by dropout while training); it returns logits `[batch, 7]` float32.

    Raises:
      ValueError: for an unknown name, or fields that the network does not have.
    """
    if config.name not in MODELS:
        raise ValueError(
            f"config.model.name is {config.name!r}; it must be one of {', '.join(sorted(MODELS))}"
        )
    if config.name != "family":
        for field in ("conv_layers", "hidden_layers"):
            if config[field] is not None:
                raise ValueError(f"config.model.{field} is only for the model `family`")
    return MODELS[config.name](config)
