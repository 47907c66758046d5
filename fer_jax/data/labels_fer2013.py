"""What scoring predictions takes of FER2013's held-out splits: names and labels, no picture.

`labels_fer2013.csv`, beside this module, has a row for each image of PublicTest and PrivateTest, in
the order of the predictions in a record: its name in the JPEG mirror, its label, and whether its
pixels also stand in Training. `uv run python -m fer_jax.data.labels_fer2013 [SOURCE]` makes it of
the JPEG mirror; none needs to be named where that is prepared.

The mirror's numbers are not the rows of the competition's CSV, nor in their order, and nothing says
which number is which row; :func:`read_csv` takes the names, labels and copies of that file itself.
"""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_jax.data import sources
from fer_jax.data.dataset import Dataset
from fer_jax.errors import DataError

PATH = Path(__file__).with_suffix(".csv")
USAGES = {"valid": "PublicTest", "test": "PrivateTest"}
_HEADER = ("id", "label", "in_train")


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
    """Returns "valid" and "test" of the JPEG mirror."""
    with PATH.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {
        split: _stack([row for row in rows if row[0].startswith(usage)])
        for split, usage in USAGES.items()
    }


def _stack(rows: Sequence[Sequence[str]]) -> Labels:
    ids, labels, in_train = zip(*rows, strict=True)
    return Labels(ids, np.array(labels, np.int64), np.array(in_train, np.int64) == 1)


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


def to_text(splits: Mapping[str, Labels]) -> str:
    """Formats what :func:`read` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for split in USAGES:
        for name, label, copy in zip(*splits[split], strict=True):
            writer.writerow((name, int(label), int(copy)))
    return text.getvalue()


def main() -> None:
    """Writes the file of the data set that the command line names."""
    from fer_jax.config import get_config
    from fer_jax.data.prepare import load_dataset
    from fer_jax.runs import workdir

    config = get_config()
    config.data.source = sys.argv[1] if len(sys.argv) > 1 else None
    dataset = load_dataset(config.data)
    if dataset.kind != "jpeg":
        raise DataError(f"the names are those of the JPEG mirror, this is fer2013/{dataset.kind}")
    workdir.write_text(PATH, to_text(of_dataset(dataset)))


if __name__ == "__main__":
    main()
