"""What scoring predictions takes of FER2013's held-out splits: names and labels, no picture.

In the order of the predictions in a record: an image's name in the JPEG mirror, its label, and
whether its pixels also stand in Training. They are read from the data set as it is prepared on this
machine; none of it comes with the package.

The mirror's numbers are not the rows of the competition's CSV, nor in their order, and nothing says
which number is which row; :func:`read_csv` takes the names, labels and copies of that file itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_jax.config import get_config
from fer_jax.data import prepare, sources
from fer_jax.data.dataset import Dataset
from fer_jax.errors import DataError

USAGES = {"valid": "PublicTest", "test": "PrivateTest"}


class Labels(NamedTuple):
    """A split without its pictures, in the order of its numbers or rows.

    Attributes:
      ids: `[n]` names: of the mirror `PrivateTest_10131363`, of a CSV its row from 0, `32298`.
      labels: `[n]` int64, 0 to 6.
      in_train: `[n]` bool, whether a training image has exactly the same pixels.
    """

    ids: Sequence[str]
    labels: np.ndarray
    in_train: np.ndarray


def read() -> dict[str, Labels]:
    """Returns "valid" and "test" of the JPEG mirror, which is prepared first where it is not.

    Raises:
      DataError: as :func:`fer_jax.data.prepare.load_dataset` does, or if only the competition's CSV
        has been prepared.
    """
    dataset = prepare.load_dataset(get_config().data)
    if dataset.kind != "jpeg":
        raise DataError(
            "images go by names of the JPEG mirror, and fer2013/"
            f"{dataset.kind} is what is prepared here: prepare the mirror too, with "
            "launch.py --config.data.source=archive.zip"
        )
    return of_dataset(dataset)


def read_csv(path: Path) -> dict[str, Labels]:
    """Returns "valid" and "test" of the competition's `fer2013.csv` or `icml_face_data.csv`.

    Raises:
      DataError: if it is something else, or not whole.
    """
    source = sources.recognise(path)
    if source.kind == "jpeg":
        raise DataError(f"{path} is the JPEG mirror, whose images go by name; --csv is for rows")
    splits = sources.read_source(source, partial=False)
    train = {image.tobytes() for image in splits["train"][0]}
    found = {}
    for split in USAGES:
        images, labels, ids = splits[split]
        rows = [str(int(name.split(b"_")[1])) for name in ids]
        in_train = np.array([image.tobytes() in train for image in images])
        found[split] = Labels(rows, labels.astype(np.int64), in_train)
    return found


def of_dataset(dataset: Dataset) -> dict[str, Labels]:
    """Returns "valid" and "test" of a prepared data set."""
    return {
        split: Labels(
            [name.decode() for name in dataset.splits[split].ids],
            dataset.splits[split].labels.astype(np.int64),
            dataset.splits[split].in_train,
        )
        for split in USAGES
    }
