"""Weights of published Keras files as variables of the networks here."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fer_jax import models
from fer_jax.errors import ExtraError, WeightsError
from fer_jax.models import summary
from fer_jax.weights import files

_Path = tuple[str, ...]

# Keras's weight name -> our collection and name.
_WEIGHTS = {
    "conv2d": {"kernel": ("params", "kernel"), "bias": ("params", "bias")},
    "separable_conv2d": {
        "depthwise_kernel": ("params", "depthwise", "kernel"),
        "pointwise_kernel": ("params", "pointwise", "kernel"),
    },
    "batch_normalization": {
        "gamma": ("params", "scale"),
        "beta": ("params", "bias"),
        "moving_mean": ("batch_stats", "mean"),
        "moving_variance": ("batch_stats", "var"),
    },
}

_MODULES = [f"module{i}" for i in (1, 2, 3, 4)]

# Our layers in the order in which the published source creates Keras's layers of each kind, from
# which their numbers follow: a module's shortcut comes before its separable convolutions.
_LAYERS: dict[str, dict[str, list[_Path]]] = {
    "mini_xception": {
        "conv2d": [
            ("conv1",),
            ("conv2",),
            *((module, "conv_shortcut") for module in _MODULES),
            ("logits",),
        ],
        "separable_conv2d": [(module, f"conv{i}") for module in _MODULES for i in (1, 2)],
        "batch_normalization": [
            ("norm1",),
            ("norm2",),
            *((module, f"norm{i}") for module in _MODULES for i in ("_shortcut", "1", "2")),
        ],
    },
    "fully_cnn": {
        "conv2d": [(f"conv{i}",) for i in range(1, 11)],
        "batch_normalization": [(f"norm{i}",) for i in range(1, 10)],
    },
}

# The fully-CNN's source names its first convolution itself.
_FIRST = {"image_array": "conv2d"}


def import_keras_hdf5(path: str | pathlib.Path, model_name: str = "mini_xception") -> dict:
    """Reads a Keras HDF5 file of a network that Arriaga et al. 2017 published for FER2013.

    They are `fer2013_mini_XCEPTION.*.hdf5` (`mini_xception`) and `simple_CNN.*.hdf5` (`fully_cnn`).
    Whole models and weights alone are read, as Keras 2 wrote them and as Keras 3 still does for
    names ending in `.h5`. Layers of one kind are told apart by the number that ends their names
    (`conv2d_1`, `conv2d_2`, ...), wherever it starts. The published files' seven classes stand in
    the order of this project's labels; the networks here prepare pixels as the files need it.

    Args:
      path: the file.
      model_name: the network it belongs to, `mini_xception` or `fully_cnn`.

    Returns:
      Variables for `model.apply`: the collections `params` and `batch_stats`, float32.

    Raises:
      ExtraError: if h5py is not installed.
      WeightsError: if the file is missing, cut off or no Keras HDF5 file, or a layer or weight is
        missing, left over or of the wrong shape; the message names it.
    """
    if model_name not in _LAYERS:
        raise WeightsError(f"model_name is {model_name!r}; it must be one of {', '.join(_LAYERS)}")
    network = models.MODELS[model_name]()
    shapes: Any = traverse_util.flatten_dict(summary.variable_shapes(network))
    weights = _read(pathlib.Path(path))
    numbered = _match_layers(weights, model_name, path)
    variables = {}
    for kind, layers in numbered.items():
        for keras_layer, ours in layers:
            for weight, (collection, *name) in _WEIGHTS[kind].items():
                target = (collection, *ours, *name)
                if target in shapes:  # a convolution may have no bias
                    array = _weight(weights[keras_layer], keras_layer, weight, path)
                    variables[target] = _checked(
                        array, shapes[target], f"{keras_layer}/{weight}", path
                    )
    return traverse_util.unflatten_dict(variables)


def recognise(path: pathlib.Path) -> str:
    """Returns which network a Keras HDF5 file is of, by its layers: `mini_xception` is the one with
    separable convolutions, and all else counts as `fully_cnn`.

    Raises:
      ExtraError: if h5py is not installed.
      WeightsError: if the file is missing, cut off or no Keras HDF5 file.
    """
    separable = any(name.startswith("separable_conv2d") for name in _read(path))
    return "mini_xception" if separable else "fully_cnn"


def _read(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights of each layer that has any: layer -> weight -> array."""
    try:
        import h5py
    except ImportError as error:
        raise ExtraError(
            f"reading {path} takes a package ({error}): pip install 'fer-jax[keras]'"
        ) from None

    files.check(path)
    if not h5py.is_hdf5(path):
        raise WeightsError(f"{path} is not an HDF5 file, which Keras's weights come in")
    try:
        with h5py.File(path) as file:
            return _read_layers(file, path)
    except WeightsError:
        raise
    except Exception as error:  # h5py raises many things on damaged files
        reason = (str(error).strip("'\"") or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is cut off or damaged ({reason}); fetch it again") from error


def _read_layers(file: Any, path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    group: Any = file.get("model_weights", file)
    if "layer_names" not in group.attrs:
        raise WeightsError(
            f"{path} is not a Keras weight file: `{group.name}` has no attribute layer_names "
            "(`.weights.h5` of Keras 3 is not read; save the whole model with a name in .h5)"
        )
    layers = {}
    for layer in _texts(group.attrs["layer_names"]):
        weights = {}
        stored = group[layer]
        for name in _texts(stored.attrs["weight_names"]):
            if name not in stored:
                raise WeightsError(f"{path} lacks the dataset {stored.name}/{name}")
            if stored[name].dtype.kind != "f":
                raise WeightsError(
                    f"{path}: {stored.name}/{name} holds {stored[name].dtype}, no floats"
                )
            weights[name.split("/")[-1].split(":")[0]] = stored[name][()]
        if weights:
            layers[layer] = weights
    return layers


def _texts(values) -> list[str]:
    """Returns an HDF5 attribute's strings, which may be stored as bytes."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _match_layers(weights: dict, model_name: str, path) -> dict:
    """Pairs a file's layers with ours: kind -> [(Keras's name, our path)], by number."""
    expected = _LAYERS[model_name]
    found: dict[str, list[tuple[int, str]]] = {kind: [] for kind in expected}
    for layer in weights:
        match = re.fullmatch(r"(.+?)(?:_(\d+))?", layer)
        kind, number = match.groups() if match else (layer, None)
        if layer in _FIRST:
            kind, number = _FIRST[layer], -1
        if kind not in found:
            raise WeightsError(
                f"{path} has the layer {layer}; expected {', '.join(expected)} of {model_name}"
            )
        found[kind].append((int(number or 0), layer))
    matched = {}
    for kind, layers in expected.items():
        names = [name for _, name in sorted(found[kind])]
        if len(names) != len(layers):
            raise WeightsError(
                f"{path} has {len(names)} layers of kind {kind} ({', '.join(names) or 'none'}); "
                f"expected {len(layers)}, as {model_name} has"
            )
        matched[kind] = list(zip(names, layers, strict=True))
    return matched


def _weight(layer: dict[str, np.ndarray], name: str, weight: str, path) -> np.ndarray:
    """Returns one weight of a layer."""
    if weight not in layer:
        raise WeightsError(f"{path} lacks {name}/{weight}; the layer has {', '.join(layer)}")
    if weight == "depthwise_kernel":  # [height, width, channels, 1] in Keras
        return np.swapaxes(layer[weight], 2, 3) if layer[weight].ndim == 4 else layer[weight]
    return layer[weight]


def _checked(array: np.ndarray, expected: jax.ShapeDtypeStruct, name: str, path) -> jax.Array:
    """Returns `array` as float32 if it has the expected shape."""
    if array.shape != expected.shape:
        raise WeightsError(
            f"{path}: {name} becomes {array.shape} here; the network needs {expected.shape}"
        )
    return jnp.asarray(array, jnp.float32)
