"""The networks, by name. This package is the only place that knows Flax modules."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fer_jax import precision
from fer_jax.config import Config
from fer_jax.errors import ConfigError
from fer_jax.labels import NUM_CLASSES
from fer_jax.models import alexnet, compact, contract, googlenet, paper, related, resnet, xception

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
    "resnet18": resnet.ResNet18,
    "compact": compact.Compact,
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
        `dropout` in `arch03`, are left unread. `dropout` always comes from here, 0.2 unless an
        experiment says otherwise, whatever the network's class has as its default. What `dtype`
        comes to is for :func:`fer_jax.precision.choose` to say: on a CPU activations are float32.
      num_classes: how many logits an image gets.
      axis_name: mesh axis the batch is sharded over, for what looks at the global batch while
        training: BatchNorm's statistics and dropout's masks. None outside `shard_map`.

    Raises:
      ConfigError: for an unknown name, fields that the network does not have, or a network that
        breaks :func:`fer_jax.models.contract.check`.
    """
    options: dict[str, Any] = config.to_dict()
    name = options.pop("name")
    if name not in MODELS:
        raise ConfigError(
            f"config.model.name is {name!r}; it must be one of {', '.join(sorted(MODELS))}"
        )
    known = _field_names(MODELS[name])
    for field in _OPTIONAL & options.keys():
        if options[field] is None:  # left to the network
            del options[field]
        elif field not in known:
            have = " and ".join(f"`{n}`" for n, m in MODELS.items() if field in _field_names(m))
            raise ConfigError(
                f"config.model.{field} is only for {have}; `{name}` has no such field"
            )
    if name == "family" and not {"conv_layers", "hidden_layers"} <= options.keys():
        raise ConfigError("model `family` needs config.model.conv_layers and .hidden_layers")
    options["dtype"] = jnp.dtype(precision.choose(options["dtype"]).activations)
    options |= {"num_classes": num_classes, "axis_name": axis_name}
    model = MODELS[name](**{field: value for field, value in options.items() if field in known})
    contract.check(model, num_classes)
    return model


# Fields of `config.model` that are None by default.
_OPTIONAL = {
    *("conv_layers", "hidden_layers"),
    *("width", "residual", "squeeze_excitation", "blur_pool", "dirac_init"),
}


def _field_names(network: type[nn.Module]) -> set[str]:
    return {field.name for field in dataclasses.fields(network)}
