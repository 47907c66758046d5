"""The networks, by name. This package is the only place that knows Flax modules."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from fer_jax.models import alexnet, googlenet, paper, related, resnet, xception
from fer_jax.models.layers import BATCH_AXIS
from fer_jax.models.paper import NUM_CLASSES

IMAGE_SHAPE = (48, 48, 1)  # height, width, channels of every image

__all__ = ["BATCH_AXIS", "IMAGE_SHAPE", "MODELS", "NUM_CLASSES", "create_model"]

MODELS: dict[str, type[nn.Module]] = {
    "arch01": paper.Architecture01,
    "arch02": paper.Architecture02,
    "arch03": paper.Architecture03,
    "family": paper.Family,
    "gudi": related.Gudi,
    "fathallah": related.Fathallah,
    "pcnn": related.PCNN,
    "fully_cnn": related.FullyCNN,
    "alexnet": alexnet.AlexNet,
    "caffenet": alexnet.CaffeNet,
    "googlenet": googlenet.GoogLeNet,
    "mini_xception": xception.MiniXception,
    "xception": xception.Xception,
    "resnet50": resnet.ResNet50,
}


def create_model(config: ConfigDict, axis_name: str | None = None) -> nn.Module:
    """Builds the network that `config.model` names.

    Every network is called as `model.apply(variables, images, train=..., positions=...)`:
    images `[batch, 48, 48, 1]` float32 in [0, 1], positions `[batch]` int32 (each example's place
    in the global batch, needed by dropout while training); it returns logits `[batch, 7]` float32.
    Variables are the collection `params` and, where a network has BatchNorm, `batch_stats`, which
    training must name in `mutable`. GoogLeNet adds `aux_logits` then; see there.

    Args:
      config: the `model` part of a configuration. Fields that a network has no use for, such as
        `dropout` in `arch03`, are left unread.
      axis_name: mesh axis that BatchNorm averages its statistics over while training; None outside
        `shard_map`.

    Raises:
      ValueError: for an unknown name, or fields that the network does not have.
    """
    if config.name not in MODELS:
        raise ValueError(
            f"config.model.name is {config.name!r}; it must be one of {', '.join(sorted(MODELS))}"
        )
    _check_family_fields(config)
    options = {
        "dropout": config.dropout,
        "dtype": jnp.dtype(config.dtype),
        "conv_layers": config.conv_layers,
        "hidden_layers": config.hidden_layers,
        "axis_name": axis_name,
    }
    network = MODELS[config.name]
    fields = {field.name for field in dataclasses.fields(network)}
    return network(**{name: value for name, value in options.items() if name in fields})


def _check_family_fields(config: ConfigDict) -> None:
    """Raises if the two fields of `family` are missing there, or set elsewhere."""
    if config.name != "family":
        for field in ("conv_layers", "hidden_layers"):
            if config[field] is not None:
                raise ValueError(f"config.model.{field} is only for the model `family`")
        return
    if config.conv_layers is None or config.hidden_layers is None:
        raise ValueError("model `family` needs config.model.conv_layers and .hidden_layers")
    paper.family_stages(config.conv_layers)
    if config.hidden_layers not in (0, 1, 2):
        raise ValueError(f"config.model.hidden_layers is {config.hidden_layers}; it must be 0 to 2")
