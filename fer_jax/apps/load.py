"""Trained weights by name or from a file, as a :class:`~fer_jax.apps.predictor.Predictor`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_jax.apps.predictor import Predictor
from fer_jax.errors import CheckpointError, WeightsError
from fer_jax.labels import CLASSES
from fer_jax.weights import SHIPPED as _SHIPPED


def shipped() -> dict[str, Path]:
    """Returns the weights that come with the package: name -> folder, in alphabetical order."""
    folders = (folder for root in _SHIPPED if root.is_dir() for folder in root.iterdir())
    return {f.name: f for f in sorted(folders, key=lambda f: f.name) if f.is_dir()}


def is_shipped(path: Path) -> bool:
    """Returns whether a folder of weights, or its file of arrays, comes with the package."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.parent in _SHIPPED


def best_shipped() -> Path:
    """Returns the folder of the shipped weights that are best on valid.

    Raises:
      WeightsError: if there are none.
    """
    here = shipped()
    if not here:
        raise WeightsError("no weights are shipped here; name some with --weights=NAME or a path")
    return max(here.values(), key=_valid_accuracy)


def _valid_accuracy(folder: Path) -> float:
    """Returns what the metadata beside shipped weights say, 0 if they say nothing of it."""
    from fer_jax.runs import workdir
    from fer_jax.weights import store

    found: Any = workdir.read_json(folder / store.METADATA)
    try:
        return found["record"]["metrics"]["valid"]["accuracy"]
    except (KeyError, TypeError):
        return 0.0


class Network(NamedTuple):
    """A trained network, its variables, their name, and what `weights.store` says of them."""

    model: Any
    variables: Any
    name: str
    metadata: dict[str, Any]


def load(weights: str | Path | None = None, views: str = "none") -> Predictor:
    """Loads a trained network as what predicts; see :func:`load_network`.

    On a CPU convolutions run in C++ where training on this machine has compiled it, in XLA alone
    elsewhere; the two round differently.

    Args:
      weights: as :func:`load_network` takes them.
      views: of each face, over which is averaged, see :func:`fer_jax.tta.views`. What the records
        here call views averaged is `shifts`: 18 times the network's work.

    Raises:
      ValueError: if there are no such views.
    """
    from fer_jax.ops import native

    network = load_network(weights)
    native.load_kept()
    classes, sha256 = network.metadata["classes"], network.metadata["sha256"]
    return Predictor(network.model, network.variables, network.name, classes, sha256, views)


def load_network(weights: str | Path | None = None) -> Network:
    """Loads a trained network.

    Args:
      weights: the name of shipped weights; a folder or file that
        :func:`fer_jax.weights.store.save` wrote; the folder of a run, whose best checkpoint is
        taken; or a Keras file that :mod:`fer_jax.weights.keras` reads (`.hdf5` or `.h5`). None for
        :func:`best_shipped`.

    Returns:
      The network, never without trained weights. Where the weights come without metadata, it has
      `classes` and `sha256` alone; that of shipped weights has their `licence` too.

    Raises:
      WeightsError: if there are no such weights, or they are damaged.
      CheckpointError: if a run's checkpoint cannot be read.
    """
    if weights is None:
        return _from_store(best_shipped())
    here = shipped()
    names = ", ".join(here) or "none"
    if str(weights) in here:
        return _from_store(here[str(weights)])
    path = Path(weights).expanduser()
    if (path / "checkpoints").is_dir():
        return _from_run(path)
    if path.is_dir():
        return _from_store(path)
    if not path.exists():
        raise WeightsError(f"there are no weights {str(weights)!r}, by name ({names}) or as a file")
    if path.suffix in (".hdf5", ".h5"):
        return _from_keras(path)
    if path.suffix == ".safetensors":
        return _from_store(path)
    raise WeightsError(
        f"{path} is not weights that can be read: .safetensors, .hdf5, .h5, or a run's folder"
    )


def _from_keras(path: Path) -> Network:
    from fer_jax.models import MODELS
    from fer_jax.weights import keras

    network = keras.recognise(path)
    return _bare(MODELS[network](), keras.import_keras_hdf5(path, network), path.stem)


def _from_run(folder: Path) -> Network:
    """Loads a run's best checkpoint."""
    from fer_jax.config import get_config
    from fer_jax.models import create_model
    from fer_jax.runs import checkpoint, resume

    progress = checkpoint.read_progress(folder)
    if progress is None or not progress["history"]:
        raise CheckpointError(f"{folder} holds no checkpoint of a completed epoch; train it first")
    config: Any = get_config()
    with config.unlocked():
        for field, value in progress["config"].items():
            config.update_from_flattened_dict({field: value})
    classes = progress["classes"]
    model = create_model(config.model, len(classes))
    best = resume.best_row(progress["history"], folder)
    variables = checkpoint.load_variables(folder, best["step"])
    checkpoint.check_variables(variables, model, folder)
    return _bare(model, variables, folder.resolve().name, classes)


def _bare(model: Any, variables: Any, name: str, classes: Sequence[str] = CLASSES) -> Network:
    from fer_jax.weights import store

    metadata = {"classes": list(classes), "sha256": store.sha256(variables)}
    return Network(model, variables, name, metadata)


def _from_store(path: Path) -> Network:
    from fer_jax.weights import store

    model, variables, metadata = store.load(path)
    if is_shipped(path):
        metadata = metadata | {"licence": "MIT"}  # the repository's
    name = path.resolve().name if path.is_dir() else path.stem
    return Network(model, variables, name, metadata)
