"""What one fresh process measures of training on its devices; :mod:`fer_jax.bench.table` starts it.

`python -m fer_jax.bench.measure` reads a task from standard input and prints one line of JSON last.
Every clock is read after `jax.block_until_ready`; compilation and the first units are left out.
"""

import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fer_jax import optim, steps
from fer_jax.config import Config
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.pipeline import epoch_order, steps_per_epoch, stream_batches
from fer_jax.evaluate import Evaluator
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import create_model
from fer_jax.models.summary import flops, parameter_counts
from fer_jax.ops import native
from fer_jax.runs import record
from fer_jax.state import create_state

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
    """Measures one seed's training and evaluation.

    Args:
      task: `config` (its dict), `counts` (images of each split), `budget_s` (time for the steps of
        each pipeline) and `started` (`time.time()` when the process was started).

    Returns:
      JSON-serialisable: `environment`, `config` and what was measured, see :class:`_Measurement`.
    """
    config: Config = ConfigDict(task["config"])
    run = _Measurement(config, task["counts"], task["budget_s"])
    measured: dict[str, Any] = {"seed": config.seed, "devices": run.mesh.size}
    measured["resident"] = run.resident()
    measured["startup_to_first_step_s"] = round(run.first_step - task["started"], 3)
    measured["evaluate"] = run.evaluate()
    measured["peak_memory_mib"] = _peak_memory_mib()
    measured["stream"] = run.stream() if importlib.util.find_spec("tensorflow") else None
    measured["step_bytes"] = run.step_bytes
    platform = run.mesh.devices.flat[0].platform
    # A product runs on one device; on CPU that has all cores.
    together = 1 if platform == "cpu" else run.mesh.size
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


class _Measurement:
    """One process's training under the clock, with the functions that a run trains with.

    Of each pipeline it gives `compile_s`, `step_ms` (median, and quartiles), `images_per_s` and
    `epoch_s` from the median, `units` (how many were timed) and `steps_per_unit`: on an accelerator
    a unit is a whole epoch of the resident pipeline, one program; otherwise it is a step.
    """

    def __init__(self, config: Config, counts: dict[str, int], budget_s: float):
        self.config = config
        self.budget_s = budget_s
        self.dataset = create_dataset(counts, config.seed)
        self.train = self.dataset.splits["train"]
        self.batch_size = config.train.batch_size
        self.per_epoch = steps_per_epoch(len(self.train.labels), self.batch_size)
        self.model = create_model(config.model, axis_name=BATCH_AXIS)
        self.mesh = devices.create_mesh(
            config.train.devices, self.batch_size, parameter_counts(self.model)[0]
        )
        tx = optim.create_optimizer(config, self.per_epoch)
        self.build = (self.model, tx, config, self.mesh)
        create = jax.jit(create_state, static_argnums=(0, 1))
        fresh = create(self.model, tx, jnp.uint32(config.seed))
        self.state = devices.put(jax.device_get(fresh), devices.replicated(self.mesh))
        self.first_step = 0.0
        self.step_bytes: float | None = None

    def resident(self) -> dict[str, Any]:
        """Measures training from a data set that lies on the device."""
        whole = devices.replicated(self.mesh)
        labels = np.asarray(self.train.labels, np.int32)
        images, labels = devices.put((self.train.images, labels), whole)
        order = devices.put(np.asarray(self._order(0)), whole)
        train_steps = steps.make_resident_steps(*self.build)
        if steps.is_scanned(self.mesh):
            epoch = devices.put(np.int32(0), whole)
            scanned = steps.make_resident_epoch(train_steps, self.per_epoch)
            args: tuple = (images, labels, epoch)
            train, compile_s = self._compile(scanned, *args)
            self._count_bytes(train_steps.lower(self.state, order, images, labels, 1).compile())
        else:
            args = (order, images, labels)
            train, compile_s = self._compile(train_steps, *args, 1)
            self._count_bytes(train)

        def unit() -> None:
            self.state = train(self.state, *args)

        per_unit = self.per_epoch if steps.is_scanned(self.mesh) else 1
        return {"compile_s": compile_s} | self._summary(self._time(unit), per_unit)

    def stream(self) -> dict[str, Any]:
        """Measures training from `tf.data`; as in a run, a batch is prepared during a step."""
        import tensorflow  # noqa: F401 - 10 s that are no part of any step

        sharding = devices.sharded(self.mesh)

        def placed() -> Iterator[tuple[jax.Array, jax.Array]]:
            for epoch in range(10**6):
                order = np.asarray(self._order(epoch))
                for batch in stream_batches(self.train, order, self.batch_size):
                    yield devices.put(batch, sharding)

        batches = placed()
        train, compile_s = self._compile(steps.make_train_step(*self.build), *next(batches))

        def unit() -> None:
            batch = next(batches)
            jax.block_until_ready(self.state.step)  # the step before, while the batch was fetched
            self.state = train(self.state, *batch)

        return {"compile_s": compile_s} | self._summary(self._time(unit, wait=False), 1)

    def evaluate(self) -> dict[str, Any]:
        """Measures the evaluation of valid, as after each epoch."""
        run = Evaluator(self.model, self.mesh, self.dataset, self.config.eval.batch_size)
        run(self.state.variables, "valid")  # places the split, and warms up
        seconds = []
        for _ in range(3):
            before = run.wall_s
            run(self.state.variables, "valid")
            seconds.append(run.wall_s - before)
        median = statistics.median(seconds)
        count = len(self.dataset.splits["valid"].labels)
        return {
            "compile_s": round(run.compile_s, 3),
            "valid_s": median,
            "images_per_s": round(count / median, 1),
        }

    def _order(self, epoch: int) -> jax.Array:
        return epoch_order(jnp.uint32(self.config.seed), jnp.int32(epoch), len(self.train.labels))

    def _compile(self, function: Any, *args: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        compiled = function.lower(self.state, *args).compile()
        return compiled, round(time.perf_counter() - start, 3)

    def _count_bytes(self, compiled: Any) -> None:
        """Keeps the bytes that XLA says one step reads and writes, on one device."""
        if not native.available():  # XLA does not see into the library
            self.step_bytes = (compiled.cost_analysis() or {}).get("bytes accessed")

    def _time(self, unit: Callable[[], None], wait: bool = True) -> list[float]:
        """Returns the seconds of units, one after another, at least 3 and for the time allowed."""
        for _ in range(2):
            unit()
            jax.block_until_ready(self.state)
            self.first_step = self.first_step or time.time()
        seconds: list[float] = []
        end = time.perf_counter() + self.budget_s
        before = time.perf_counter()
        while len(seconds) < 3 or time.perf_counter() < end:
            unit()
            if wait:
                jax.block_until_ready(self.state)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
        jax.block_until_ready(self.state)
        return seconds

    def _summary(self, seconds: list[float], per_unit: int) -> dict[str, Any]:
        low, median, high = (
            float(q) * 1e3 / per_unit for q in np.quantile(seconds, (0.25, 0.5, 0.75))
        )
        return {
            "step_ms": {"median": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]},
            "images_per_s": round(self.batch_size / median * 1e3, 1),
            "epoch_s": round(median * self.per_epoch / 1e3, 4),
            "units": len(seconds),
            "steps_per_unit": per_unit,
        }


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
    """Answers a task, or says which platform there is if the task is empty."""
    task = json.loads(sys.stdin.read())
    devices.setup()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are what is asked for
    platform = devices.start()
    if task:
        native.load()
    print(json.dumps(measure(task) if task else {"platform": platform}))


if __name__ == "__main__":
    main()
