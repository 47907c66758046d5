"""What one fresh process measures of training on its devices; :mod:`fer_jax.bench.table` starts it.

`python -m fer_jax.bench.measure` reads a task from standard input and prints one line of JSON last.
Every clock is read after `jax.block_until_ready`; compilation and the first units are left out.
"""

import contextlib
import importlib.util
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fer_jax import loop, precision, steps
from fer_jax.config import Config
from fer_jax.data.dataset import Dataset, Split
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.loop import Training
from fer_jax.machine import devices
from fer_jax.models import create_model
from fer_jax.models.summary import flops
from fer_jax.ops import native
from fer_jax.predict import make_predict
from fer_jax.runs import record
from fer_jax.runs.clock import Clock
from fer_jax.state import TrainState

MATMUL_SIDE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # of square matrices
STREAM_BYTES = {"cpu": 2**28, "gpu": 2**30, "tpu": 2**30}  # of the array read and written


def create_dataset(counts: dict[str, int], seed: int) -> Dataset:
    """Returns random images and labels: speed does not depend on what is in a picture.

    Args:
      counts: images of each split.
      seed: of the random numbers.
    """
    random = np.random.default_rng(seed)

    def split(count: int) -> Split:
        return Split(
            images=random.integers(0, 256, (count, *IMAGE_SHAPE), np.uint8),
            labels=random.integers(0, 7, count, np.uint8),
            ids=np.arange(count).astype("S"),
            in_train=np.zeros(count, bool),
        )

    splits = {name: split(count) for name, count in counts.items()}
    return Dataset("random", "random", "", splits)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measures one seed's training and evaluation, with the functions of a run.

    Args:
      task: `config` (its dict), `counts` (images of each split), `budget_s` (time for the steps of
        each pipeline) and `started` (`time.time()` when the process was started).

    Returns:
      JSON-serialisable: `environment`, `config` and what was measured, see :func:`time_training`
      and :func:`time_evaluation`.
    """
    config: Config = ConfigDict(task["config"])
    dataset = create_dataset(task["counts"], config.seed)
    train = dataset.splits["train"]
    model, mesh = loop.create_network(config)
    training = loop.create_training(config, model, mesh, train.labels)
    measured: dict[str, Any] = {"seed": config.seed, "devices": mesh.size}
    measured["activations"] = precision.choose(config.model.dtype).activations
    measured["resident"], first_step = time_training(training, train, "resident", task["budget_s"])
    measured["startup_to_first_step_s"] = round(first_step - task["started"], 3)
    measured["evaluate"] = time_evaluation(
        training, dataset.splits["valid"].images, config.eval.batch_size
    )
    measured["peak_memory_mib"] = _peak_memory_mib()
    measured["stream"] = None
    if importlib.util.find_spec("tensorflow"):
        measured["stream"], _ = time_training(training, train, "stream", task["budget_s"])
    measured["step_bytes"] = _step_bytes(training, train)
    platform = mesh.devices.flat[0].platform
    # A product runs on one device; on CPU that has all cores.
    together = 1 if platform == "cpu" else mesh.size
    measured["matmul_flops_per_s"] = {
        dtype: matmul_rate(dtype, MATMUL_SIDE[platform]) * together
        for dtype in ("float32", "bfloat16")
    }
    measured["memory_bytes_per_s"] = memory_rate(STREAM_BYTES[platform])
    return {
        "environment": record.environment(),
        "config": record.describe_config(config),
        "counts": task["counts"],
        "forward_flops_per_image": flops(create_model(config.model)),
        "measured": measured,
    }


class _Enough(Exception):
    """Ends training in mid-epoch: all has been measured."""


def time_training(
    training: Training, train: Split, pipeline: str, budget_s: float
) -> tuple[dict[str, Any], float]:
    """Trains from the first step on under the clock.

    Args:
      training: from `loop.create_training`.
      train: the images that are trained on.
      pipeline: `stream` or `resident`.
      budget_s: how long to measure; at least three units are.

    Returns:
      `compile_s`, `step_ms` (median, and quartiles), `images_per_s` and `epoch_s` from the median,
      `units` (how many were timed) and `steps_per_unit`: on an accelerator a unit is a whole epoch
      of the resident pipeline, one program; otherwise it is a step. And `time.time()` after the
      first unit.
    """
    clock = Clock()
    train_epoch = loop.make_epoch(training, train, pipeline, clock)
    steps_done, times, first = [], [], []

    def on_step(state: TrainState) -> None:
        first.append(time.time())
        times.append(time.perf_counter())
        steps_done.append(int(state.step))
        if len(times) >= 5 and times[-1] - times[1] >= budget_s:  # the first two warm up
            raise _Enough

    state = training.create_state()
    with contextlib.suppress(_Enough):
        for epoch in itertools.count():
            state = train_epoch(state, epoch, on_step)
    per_unit = steps_done[0]
    seconds = np.diff(times[1:])
    low, median, high = (float(q) * 1e3 / per_unit for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {
        "compile_s": round(clock.seconds()["compile"], 3),
        "step_ms": {"median": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]},
        "images_per_s": round(training.batch_size / median * 1e3, 1),
        "epoch_s": round(median * training.per_epoch / 1e3, 4),
        "units": len(seconds),
        "steps_per_unit": per_unit,
    }, first[0]


def time_evaluation(training: Training, images: np.ndarray, batch_size: int) -> dict[str, Any]:
    """Measures the prediction of a split, `[n, height, width, 1]` uint8, as after each epoch.

    Returns:
      `compile_s`, `valid_s` (median of three) and `images_per_s` from it.
    """
    predict = make_predict(training.model, training.mesh, batch_size)
    variables = training.create_state().variables
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        predict(variables, images)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return {
        "compile_s": round(max(seconds[0] - median, 0.0), 3),
        "valid_s": median,
        "images_per_s": round(len(images) / median, 1),
    }


def _step_bytes(training: Training, train: Split) -> float | None:
    """Returns the bytes that XLA says one step reads and writes, on one device."""
    if native.available():  # XLA does not see into the library
        return None
    step = steps.make_resident_step(training.step, training.mesh, training.batch_size)
    count = len(train.labels)
    arrays = (
        jax.ShapeDtypeStruct((count,), np.int32),
        jax.ShapeDtypeStruct(train.images.shape, np.uint8),
        jax.ShapeDtypeStruct((count,), np.int32),
    )
    compiled = step.lower(training.create_state(), *arrays).compile()
    return (compiled.cost_analysis() or {}).get("bytes accessed")


def matmul_rate(dtype: str, side: int, budget_s: float = 1.0) -> float:
    """Returns the best FLOP/s of square matrix products, at JAX's default precision.

    On a GPU since Ampere that is TensorFloat-32 for float32.
    """
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / _best_s(lambda: product(a, a), budget_s)


def memory_rate(size: int, budget_s: float = 1.0) -> float:
    """Returns the best bytes/s, read and written, of adding one to an array of `size` bytes."""
    add = jax.jit(lambda x: x + 1.0)
    x = jnp.zeros(size // 4, jnp.float32)
    return 2 * size / _best_s(lambda: add(x), budget_s)


def _best_s(function: Callable[[], jax.Array], budget_s: float) -> float:
    jax.block_until_ready(function())
    seconds = []
    end = time.perf_counter() + budget_s
    while not seconds or (time.perf_counter() < end and len(seconds) < 50):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _peak_memory_mib() -> float:
    """Returns the peak of the device's memory; on CPU, of this process's resident memory."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return round(stats["peak_bytes_in_use"] / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def main() -> None:
    """Answers a task, or says which device there is if the task is empty."""
    task = json.loads(sys.stdin.read())
    devices.setup()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are what is asked for
    devices.start()
    if task:
        native.load()
    print(json.dumps(measure(task) if task else record.environment()["device"]))


if __name__ == "__main__":
    main()
