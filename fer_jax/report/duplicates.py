"""Counts copies among the images of FER2013, and how often their labels contradict each other.

`uv run python -m fer_jax.report.duplicates [SOURCE]` writes `results/dataset.json`; a source is
what `--config.data.source` takes, and none is needed where the data set has been prepared.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import get_config
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import RecordError
from fer_jax.labels import SPLITS
from fer_jax.runs import record, workdir
from fer_jax.study.plan import ROOT

FORMAT = 1
PATH = ROOT / "results" / "dataset.json"

type Labels = dict[bytes, list[int]]  # an image's pixels -> the labels of all its copies


def count(dataset: Dataset) -> dict[str, Any]:
    """Counts copies within the splits and between them. Copies are equal in every pixel.

    Returns:
      A record without pixels. `within` each split: `groups` of two or more copies and the `images`
      in them; those whose labels are not all the same; `best_accuracy`, what the best function of
      the pixels could reach, as it gives all copies one answer. `between` two splits: the `images`
      of the second that have a copy in the first, and those `contradicted`: none of the copies
      there has their label. `test_numbers`: the number in each test image's name, in the order of
      the records' predictions.
    """
    labels = {name: _labels_of(split) for name, split in dataset.splits.items()}
    orders = (("train", "valid"), ("train", "test"), ("valid", "test"))
    return {
        "format": FORMAT,
        "dataset": record.describe_dataset(dataset),
        "within": {name: _within(labels[name]) for name in SPLITS},
        "between": {f"{a}, {b}": _between(labels[a], labels[b]) for a, b in orders},
        "test_numbers": [int(name.split(b"_")[-1]) for name in dataset.splits["test"].ids],
    }


def read(path: Path = PATH) -> dict[str, Any] | None:
    """Returns the record that :func:`count` made, None if there is none.

    Raises:
      RecordError: naming the file, if it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if set(found["within"]) != set(SPLITS) or not isinstance(found["test_numbers"], list):
            raise ValueError("splits or test images are missing")
        for split in SPLITS:
            found["dataset"]["count"][split]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is no record of a data set ({error!r})") from error
    return found


def _labels_of(split: Split) -> Labels:
    found: Labels = defaultdict(list)
    for image, label in zip(np.asarray(split.images), split.labels, strict=True):
        found[image.tobytes()].append(int(label))
    return found


def _within(labels: Labels) -> dict[str, Any]:
    groups = [found for found in labels.values() if len(found) > 1]
    conflicting = [found for found in groups if len(set(found)) > 1]
    best = sum(max(Counter(found).values()) for found in labels.values())
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "conflicting_groups": len(conflicting),
        "conflicting_images": sum(map(len, conflicting)),
        "best_accuracy": round(best / sum(map(len, labels.values())), 6),
    }


def _between(first: Labels, second: Labels) -> dict[str, int]:
    found = [
        (label, first[image])
        for image, labels in second.items()
        if image in first
        for label in labels
    ]
    contradicted = sum(label not in copies for label, copies in found)
    return {"images": len(found), "contradicted": contradicted}


def main() -> None:
    """Writes the record of the data set that the command line names."""
    config = get_config()
    config.data.source = sys.argv[1] if len(sys.argv) > 1 else None
    workdir.write_json(PATH, count(load_dataset(config.data)))


if __name__ == "__main__":
    main()
