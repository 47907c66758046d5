"""What every peer shares: the networks layer by layer, the data, the clock, the output line.

Standard library and NumPy only, for any Python from 3.10 on: PyTorch's environment runs it too.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

EVAL_BATCH = 256
LEARNING_RATE = 1e-3  # of Adam, its other parameters the libraries' own: 0.9, 0.999
CLASSES = 7
DROPOUT = 0.2

# Figures 6 to 8 of the paper: ("conv", filters, side), ("max" or "avg", side, stride) and
# ("dense", units). VALID padding everywhere; ReLU after every convolution and dense layer, dropout
# after every dense layer; flattening before the first dense one; a dense layer of 7 at the end.
#
# What is trained today has BatchNorm and SAME padding: ("norm", filters) is a 3x3 convolution
# without bias, BatchNorm and ReLU; ("block", filters, stride) He et al. 2016's basic block, its
# shortcut a 1x1 convolution and BatchNorm where shapes differ; ("mean",) averages each channel,
# ("drop",) is dropout.
NETWORKS: dict[str, list[tuple]] = {
    "arch01": [
        ("conv", 64, 5),
        ("max", 5, 2),
        ("conv", 64, 3),
        ("conv", 64, 3),
        ("avg", 3, 2),
        ("conv", 128, 3),
        ("conv", 128, 3),
        ("avg", 3, 2),
        ("dense", 1024),
        ("dense", 1024),
    ],
    "arch02": [
        ("conv", 32, 3),
        ("max", 2, 2),
        ("conv", 32, 3),
        ("max", 2, 2),
        ("dense", 128),
    ],
    "arch03": [
        ("conv", 32, 3),
        ("conv", 32, 3),
        ("max", 2, 2),
        ("conv", 64, 3),
        ("conv", 64, 3),
        ("max", 2, 2),
        ("conv", 128, 3),
        ("conv", 128, 3),
        ("max", 2, 2),
    ],
    "compact": [
        ("norm", 32),
        ("norm", 32),
        ("max", 2, 2),
        ("norm", 64),
        ("norm", 64),
        ("max", 2, 2),
        ("norm", 128),
        ("norm", 128),
        ("max", 2, 2),
        ("norm", 256),
        ("norm", 256),
        ("mean",),
        ("drop",),
    ],
    "resnet18": [
        ("norm", 32),
        ("block", 32, 1),
        ("block", 32, 1),
        ("block", 64, 2),
        ("block", 64, 1),
        ("block", 128, 2),
        ("block", 128, 1),
        ("block", 256, 2),
        ("block", 256, 1),
        ("mean",),
    ],
}
WIDTH = 32  # of the networks with BatchNorm, their first stage's channels


def create_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images `[size, 48, 48, 1]` uint8 and labels `[size]` int32, seed 0."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 48, 48, 1), np.uint8)
    return images, rng.integers(0, CLASSES, size, np.int32)


def calls_per_s(call: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Warms up for half of the time and eight calls, then counts calls for `seconds`.

    Some of the first steps take two or three times as long as all that follow: the allocator still
    asks for memory.

    Args:
      call: does one step; need not wait for its result.
      wait: returns once every step has been done.
      seconds: how long to count.
    """

    def run(seconds: float, at_least: int) -> float:
        wait()
        start, count = time.perf_counter(), 0
        while count < at_least or time.perf_counter() - start < seconds:
            call()
            count += 1
        wait()
        return count / (time.perf_counter() - start)

    run(seconds / 2, at_least=8)
    return run(seconds, at_least=2)


def repeat(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Calls for so long, after a warm-up; returns the median `ms` of a call and calls `per_s`."""
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"ms": 1e3 * median(times), "per_s": len(times) / sum(times)}


def run_worker(measure: Callable[[argparse.Namespace], Iterator[dict]], *options: str) -> None:
    """Runs one measurement in this process and prints its numbers as one line of JSON.

    Args:
      measure: (arguments) -> pieces of the line.
      options: further switches of the command line.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=NETWORKS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--evaluate", action="store_true", help="measure evaluation too")
    for option in options:
        parser.add_argument(option, action="store_true")
    line: dict = {}
    for piece in measure(parser.parse_args()):
        line |= piece
    print(json.dumps(line), flush=True)
