"""The networks, by name. This package is the only place that knows Flax modules."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fer_jax.config import Config
from fer_jax.errors import ConfigError
from fer_jax.labels import NUM_CLASSES
from fer_jax.models import alexnet, googlenet, paper, related, resnet, xception

__all__ = ["MODELS", "create_model"]

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


def create_model(
    config: Config, num_classes: int = NUM_CLASSES, axis_name: str | None = None
) -> nn.Module:
    """Builds the network that `config.model` names.

    Every network is called as `model.apply(variables, images, train=...)`: images
    `[batch, 48, 48, 1]` float32 in [0, 1]; it returns logits `[batch, num_classes]` float32.
    Training gives dropout its key, `rngs={"dropout": key}`. Variables are the collection `params`
    and, where a network has BatchNorm, `batch_stats`, which training must name in `mutable`.
    GoogLeNet adds `aux_logits` then; see there.

    Args:
      config: the `model` part of a configuration. Fields that a network has no use for, such as
        `dropout` in `arch03`, are left unread.
      num_classes: how many logits an image gets.
      axis_name: mesh axis the batch is sharded over, for what looks at the global batch while
        training: BatchNorm's statistics and dropout's masks. None outside `shard_map`.

    Raises:
      ConfigError: for an unknown name, or fields that the network does not have.
    """
    options: dict[str, Any] = config.to_dict()
    name = options.pop("name")
    if name not in MODELS:
        raise ConfigError(
            f"config.model.name is {name!r}; it must be one of {', '.join(sorted(MODELS))}"
        )
    _check_family_fields(name, options)
    options["dtype"] = jnp.dtype(options["dtype"])
    options |= {"num_classes": num_classes, "axis_name": axis_name}
    known = {field.name for field in dataclasses.fields(MODELS[name])}
    return MODELS[name](**{field: value for field, value in options.items() if field in known})


def _check_family_fields(name: str, options: dict[str, Any]) -> None:
    """Raises if the two fields of `family` are missing there, or set elsewhere."""
    conv_layers, hidden_layers = options["conv_layers"], options["hidden_layers"]
    if name != "family":
        for field in ("conv_layers", "hidden_layers"):
            if options[field] is not None:
                raise ConfigError(f"config.model.{field} is only for the model `family`")
        return
    if conv_layers is None or hidden_layers is None:
        raise ConfigError("model `family` needs config.model.conv_layers and .hidden_layers")
    paper.family_stages(conv_layers)
    if hidden_layers not in (0, 1, 2):
        raise ConfigError(f"config.model.hidden_layers is {hidden_layers}; it must be 0 to 2")
