"""Trained networks as files: arrays in safetensors, and all that using them takes beside them.

A folder holds `model.safetensors` and `metadata.json`. The metadata also stands in the first file,
so that this one alone can be loaded. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from fer_jax import seal
from fer_jax.config import Config, get_config
from fer_jax.errors import ConfigError, WeightsError
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.models import create_model, summary
from fer_jax.runs import workdir
from fer_jax.weights import files

FORMAT = 1
ARRAYS, METADATA = "model.safetensors", "metadata.json"
_KEY = "fer_jax"  # of the metadata within the file of arrays
_AGAIN = "fetch or save it again"


def save(
    folder: Path,
    variables: dict[str, Any],
    config_model: Config,
    classes: tuple[str, ...],
    record: dict[str, Any] | None = None,
    half: Collection[str] = (),
) -> dict[str, Any]:
    """Writes a trained network.

    Args:
      folder: created if missing; a network that is there is replaced.
      variables: as `model.apply` takes them, float32.
      config_model: the `model` part of the configuration that the network was created from.
      classes: names of the logits, in order.
      record: what to keep of the run, as JSON knows it.
      half: names of those arrays ("params/conv1/kernel") that are stored as float16, at half the
        size; :func:`load` gives float32 back.

    Returns:
      The metadata that was written; see :func:`load`.

    Raises:
      WeightsError: if the variables are not this network's, or are not finite.
      WorkdirError: if the folder cannot be written.
    """
    data, metadata = encode(folder, variables, config_model, classes, record, half)
    write(folder, data, metadata)
    return metadata


def encode(
    folder: Path,
    variables: dict[str, Any],
    config_model: Config,
    classes: tuple[str, ...],
    record: dict[str, Any] | None,
    half: Collection[str],
) -> tuple[bytes, dict[str, Any]]:
    """Returns the file of arrays and the metadata that :func:`save` writes; nothing is written.

    Args:
      folder: names the network in messages; the rest as in :func:`save`.

    Raises:
      WeightsError: as :func:`save` does.
    """
    arrays = _arrays(variables)
    _check_network(_create(config_model, classes, str(folder)), arrays, str(folder))
    arrays = _halved(arrays, half)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{folder}: {name} is not finite in {array.dtype}; nothing is saved")
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "model": config_model.to_dict(),
        "classes": list(classes),
        "input": {"shape": list(IMAGE_SHAPE), "dtype": "uint8", "colour": "grey"},
        "preprocessing": "pixels / 255 as float32; whatever else is done, the network does",
        "output": "logits, float32, one for each class; their softmax are probabilities",
        "kernels": " and ".join(sorted({a.dtype.name for a in arrays.values() if a.ndim > 1})),
        "parameters": sum(array.size for array in arrays.values()),
        "sha256": _sha256(arrays),
        "record": record,
    }
    metadata = seal.add(metadata)
    return safetensors.numpy.save(arrays, {_KEY: json.dumps(metadata, sort_keys=True)}), metadata


def write(folder: Path, data: bytes, metadata: dict[str, Any]) -> None:
    """Writes what :func:`encode` returned.

    Raises:
      WorkdirError: if the folder cannot be written.
    """
    folder = Path(folder)
    workdir.write_bytes(folder / ARRAYS, data)
    workdir.write_json(folder / METADATA, metadata)


def load(path: Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Reads what :func:`save` wrote.

    Args:
      path: the folder, or its file of arrays, which may have another name.

    Returns:
      The network, created for one device; its variables, float32; and the metadata: `model` (its
      configuration), `classes`, `input`, `preprocessing`, `output`, `kernels` (their stored types),
      `parameters` (their number, running statistics included), `sha256` (of the arrays) and
      `record`.

    Raises:
      WeightsError: naming the file and what it is: missing, cut off, damaged, of another kind, of
        another network than it says, or not the one that the metadata beside it describes.
    """
    path = Path(path)
    file = path / ARRAYS if path.is_dir() else path
    files.check(file)
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            metadata = (opened.metadata() or {}).get(_KEY)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{file} is no safetensors file, or is cut off ({error}); {_AGAIN}"
        ) from error
    metadata = _read_metadata(file, metadata)
    if path.is_dir():
        _compare(file, path / METADATA, metadata)
    if _sha256(arrays) != metadata["sha256"]:
        raise WeightsError(f"{file} is damaged: its arrays are not those saved; {_AGAIN}")
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = _create(_config(file, metadata["model"]), metadata["classes"], str(file))
    _check_network(model, arrays, str(file))
    named = {tuple(name.split("/")): jnp.asarray(array) for name, array in arrays.items()}
    return model, traverse_util.unflatten_dict(named), metadata


def as_stored(variables: dict[str, Any], half: Collection[str]) -> dict[str, Any]:
    """Returns variables, float32, as :func:`load` gives them back after :func:`save`."""
    arrays = _arrays(variables)
    arrays = {name: array.astype(np.float32) for name, array in _halved(arrays, half).items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def kernels(variables: dict[str, Any]) -> list[str]:
    """Returns the names of a network's kernels, the largest first."""
    found = {name: a.size for name, a in _flatten(variables).items() if a.ndim > 1}
    return sorted(found, key=lambda name: -found[name])


def _halved(arrays: dict[str, np.ndarray], half: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the arrays, those named as float16: infinite where that cannot hold them."""
    with np.errstate(over="ignore"):
        return {n: array.astype(np.float16) if n in half else array for n, array in arrays.items()}


def sha256(variables: dict[str, Any]) -> str:
    """Returns the hash that :func:`save` keeps of these variables, float32."""
    return _sha256(_arrays(variables))


def _arrays(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(a, np.float32) for name, a in _flatten(variables).items()}


def _flatten(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns `{"params/conv1/kernel": ..., ...}`."""
    return traverse_util.flatten_dict(variables, sep="/")


def _sha256(arrays: dict[str, np.ndarray]) -> str:
    """Returns the hash of all names, types, shapes and elements."""
    sums = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sums.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sums.update(np.ascontiguousarray(array).tobytes())
    return sums.hexdigest()


def _read_metadata(file: Path, text: str | None) -> dict[str, Any]:
    """Returns the metadata that stands within a file of arrays."""
    if text is None:
        raise WeightsError(f"{file} is a safetensors file, but this project did not write it")
    try:
        metadata = json.loads(text)
        known = metadata["format"] == FORMAT
        complete = {"model", "classes", "sha256"} <= metadata.keys()
    except (ValueError, TypeError, KeyError, AttributeError):
        known, complete, metadata = True, False, {}
    if not known:
        raise WeightsError(
            f"{file} is of format {metadata['format']}; this version reads format {FORMAT}"
        )
    if not complete or seal.is_broken(metadata):
        raise WeightsError(f"{file} is damaged: its metadata is not what was saved; {_AGAIN}")
    return metadata


def _compare(file: Path, beside: Path, metadata: dict[str, Any]) -> None:
    """Raises if the metadata beside a file describes another one."""
    try:
        described = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise WeightsError(f"{beside} cannot be read ({error}); {_AGAIN}") from error
    if described != metadata:
        raise WeightsError(
            f"{file} is not the file that {beside} describes: one of them was exchanged; load the "
            "file of arrays by itself to see what it is, or fetch both again"
        )


def _config(file: Path, fields: dict[str, Any]) -> Config:
    """Returns a configuration of a network; fields that it lacks have their defaults."""
    config = get_config().model
    try:
        config.update(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{file} has a configuration of a network that this version does not know ({error})"
        ) from error
    return config


def _create(config: ConfigDict, classes: Any, where: str) -> nn.Module:
    try:
        return create_model(config, len(classes))
    except ConfigError as error:
        raise WeightsError(f"{where}: its network cannot be created: {error}") from error


def _check_network(model: nn.Module, arrays: dict[str, np.ndarray], where: str) -> None:
    """Raises if the arrays are not a network's variables."""
    name = type(model).__name__
    expected = _flatten(summary.variable_shapes(model))
    for problem, names in (
        ("lacks", expected.keys() - arrays.keys()),
        ("has beside those of the network", arrays.keys() - expected.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise WeightsError(f"{where} is of another network than {name}: it {problem} {some}")
    for key, leaf in expected.items():
        if arrays[key].shape != leaf.shape:
            raise WeightsError(
                f"{where} is of another network than {name}: {key} is {arrays[key].shape}, not "
                f"{leaf.shape}"
            )
