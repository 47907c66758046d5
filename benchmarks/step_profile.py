"""Profiles training steps on a CPU: what each part takes, and how long a core waits.

    uv run python benchmarks/step_profile.py

Prints a table, writes it into `docs/performance.md` and a record to `results/cpu_profile.json`.
Each network is trained in a fresh process that lets JAX's profiler note when each operation of XLA
or of the C++ began and ended. An operation's part follows from the layer and the direction in its
name; where XLA fuses several into one loop, the name is that of the last, so that what max-pooling
reads through (normalisation, ReLU) counts as pooling. Times are those of threads, by the number of
cores. The profiler itself costs time: the record has the step's median with and without it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
from absl import app, flags
from peer_fer_jax import Trainer

from fer_jax.bench import use
from fer_jax.errors import BenchmarkError
from fer_jax.machine import environment
from fer_jax.report import markdown
from fer_jax.runs import workdir

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "cpu_profile.json"
DOCUMENT = ROOT / "docs" / "performance.md"
CASES = {
    "arch01": ("Architecture 01", 96),
    "arch02": ("Architecture 02", 96),
    "arch03": ("Architecture 03", 96),
    "compact": ("`compact`", 128),
}

_STEPS = flags.DEFINE_integer("steps", 20, "under the profiler, and as many without it", 3)
_WARM_UP = flags.DEFINE_integer("warm_up", 10, "steps before those, of which none counts", 1)
_MODELS = flags.DEFINE_list("models", list(CASES), "networks")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "`config.model.dtype`")
_OUTPUT = flags.DEFINE_string("output", str(RECORD), "the record")
_WORKER = flags.DEFINE_string("worker", None, "internal: the network of this process")

REST = "Convolution, other gradients, kernels turned"
WAITING, IDLE = "Sums over the devices, and waiting for each other there", "Between operations"
UPDATE = "Everything else: input, loss, update, metrics"
# How a layer's name begins, and what it is; a name is looked for in this order.
LAYERS = {
    "norm": "BatchNorm and ReLU",
    "pool": "Pooling, and what is fused with it",
    "conv": "Convolution",
    "dense": "Dense layers, dropout",
    "logits": "Dense layers, dropout",
    "dropout": "Dense layers, dropout",
}
PARTS: tuple[str, ...] = (
    "Convolution, forward",
    "Convolution, image gradient",
    "Convolution, kernel gradient",
    REST,
    "BatchNorm and ReLU, forward",
    "BatchNorm and ReLU, backward",
    "Pooling, and what is fused with it, forward",
    "Pooling, and what is fused with it, backward",
    "Dense layers, dropout, forward",
    "Dense layers, dropout, backward",
    UPDATE,
    WAITING,
    IDLE,
)


class Interval(NamedTuple):
    """What a thread did from when to when, in ns; `""` is the work of no operation."""

    start: float
    end: float
    operation: str


def main(_: list[str]) -> None:
    """Profiles every network, or as a worker one of them."""
    if _WORKER.value:
        print(json.dumps(profile(_WORKER.value)))
        return
    unknown = sorted(set(_MODELS.value) - set(CASES))
    if unknown:
        raise app.UsageError(f"--models={unknown[0]}: there are {', '.join(CASES)}")
    record: dict[str, Any] = {"dtype": _DTYPE.value, "load_average": os.getloadavg()[0]}
    record["networks"] = {name: _run(name) for name in _MODELS.value}
    record["environment"] = environment.describe()
    print(format_table(record))
    workdir.write_json(Path(_OUTPUT.value), record)
    if Path(_OUTPUT.value).resolve() == RECORD:
        text = DOCUMENT.read_text(encoding="utf-8")
        block = markdown.replace_block(text, "step-profile", f"\n{format_table(record)}\n")
        workdir.write_text(DOCUMENT, block)


def profile(model: str) -> dict[str, Any]:
    """Trains on random images and returns where the step's time goes.

    Returns:
      `batch`, `devices`, the medians `step_ms` and `profiled_step_ms`, and `parts_ms`: part -> ms
      of a step, means over steps and cores; they add up to the mean step under the profiler.

    Raises:
      BenchmarkError: if the profiler noted no operation, or more than the cores can do.
    """
    batch = CASES[model][1]
    trainer = Trainer(model, batch, _DTYPE.value)
    _times_ms(trainer, _WARM_UP.value)
    plain = _times_ms(trainer, _STEPS.value)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory(prefix="fer_jax_profile_") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            profiled = _times_ms(trainer, _STEPS.value)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        threads = read_threads(jax.profiler.ProfileData.from_file(str(trace)))
    if not any(interval.operation for thread in threads for interval in thread):
        raise BenchmarkError(f"{model}: the profiler noted no operation; is it a CPU?")
    parts_ns = attribute(threads, parts_of(trainer.step.as_text()))
    shared = 1e6 * _STEPS.value * environment.cpu_cores()
    parts_ms = {part: ns / shared for part, ns in parts_ns.items()}
    # What is left of the time: threads wait for work, or are at none of an operation.
    parts_ms[IDLE] = sum(profiled) / len(profiled) - sum(parts_ms.values())
    if parts_ms[IDLE] < 0:
        raise BenchmarkError(f"{model}: more threads are at work than there are cores")
    return {
        "batch": batch,
        "devices": trainer.devices,
        "step_ms": median(plain),
        "profiled_step_ms": median(profiled),
        "parts_ms": parts_ms,
    }


def parts_of(program: str) -> dict[str, str]:
    """Returns the part that each operation of a compiled program is of.

    Args:
      program: its HLO text.
    """
    operation = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?\b([\w-]+)\(.*op_name=\"([^\"]*)\"")
    found = {}
    for line in program.splitlines():
        if match := operation.match(line):
            target = re.search(r'custom_call_target="([^"]*)"', line)
            found[match[1]] = _part(match[2], match[3], target[1] if target else "")
    return found


def _part(opcode: str, name: str, target: str) -> str:
    if opcode.startswith("all-reduce"):
        return WAITING
    # jit(step)/shard_map/transpose(jvp(Compact))/conv1_1/...: the layers stand behind the network.
    # What autodiff made of it has `transpose(...)` around its name.
    network = re.search(r"jvp\(\w+\)\)?/(.*)/", name)
    path = f"/{network[1]}" if network else ""
    layer = next((layer for beginning, layer in LAYERS.items() if f"/{beginning}" in path), None)
    if layer is None:
        return UPDATE
    direction = "backward" if "transpose(" in name else "forward"
    if (layer, direction) != ("Convolution", "backward"):
        return f"{layer}, {direction}"
    if "kernel_gradient" in target:
        return "Convolution, kernel gradient"
    return "Convolution, image gradient" if target else REST


def read_threads(data: Any) -> list[list[Interval]]:
    """Returns what the threads of XLA's CPU backend did; intervals of a thread are nested.

    An operation of XLA is an event with a name. One of the C++ is such an event only until it has
    handed its work to the thread pool, which notes a number there (`Record`) and again on the
    thread that does it, where it begins (`StartRegion`) and ends (`StopRegion`). What follows from
    its end is run, and noted, within that region (`ThunkExecutor::Execute`).

    Args:
      data: `jax.profiler.ProfileData`.
    """
    threads, handed_over, regions = [], {}, []
    for line in (line for plane in data.planes for line in plane.lines):
        thread: list[Interval] = []
        running: list[Interval] = []
        begun = []
        for event in sorted(line.events, key=lambda event: (event.start_ns, -event.end_ns)):
            stats = dict(event.stats)
            running = [interval for interval in running if interval.end >= event.start_ns]
            if "hlo_op" in stats:
                running.append(Interval(event.start_ns, event.end_ns, event.name))
                thread.append(running[-1])
            elif event.name == "ThunkExecutor::Execute":
                thread.append(Interval(event.start_ns, event.end_ns, ""))
            elif event.name == "ThreadpoolListener::Record":
                handed_over[stats["_p"]] = running[-1].operation if running else ""
            elif event.name == "ThreadpoolListener::StartRegion":
                begun.append((event.start_ns, stats["_c"]))
            elif event.name == "ThreadpoolListener::StopRegion" and begun:
                regions.append((thread, *begun.pop(), event.end_ns))
        threads.append(thread)
    for thread, start, number, end in regions:  # of operations of any thread
        thread.append(Interval(start, end, handed_over.get(number, "")))
    return threads


def attribute(threads: list[list[Interval]], parts: dict[str, str]) -> dict[str, float]:
    """Returns ns of every part, summed over threads; the innermost interval has the time.

    Args:
      threads: from :func:`read_threads`.
      parts: operation -> part; what is not there counts as `UPDATE`.
    """
    total = dict.fromkeys(PARTS, 0.0)

    def count(interval: Interval, ns: float) -> None:
        if interval.operation:
            total[parts.get(interval.operation, UPDATE)] += ns

    for thread in threads:
        around: list[Interval] = []
        for interval in sorted(thread, key=lambda interval: (interval.start, -interval.end)):
            while around and around[-1].end <= interval.start:
                around.pop()
            count(interval, interval.end - interval.start)
            if around:
                count(around[-1], interval.start - interval.end)
            around.append(interval)
    return total


def format_table(record: dict[str, Any]) -> str:
    """Formats a record: a row for each part, a column for each network."""
    networks = record["networks"]
    header = [f"{CASES[name][0]}, batch {found['batch']}" for name, found in networks.items()]
    rows = []
    for part in PARTS:
        shares = [(n["parts_ms"][part], sum(n["parts_ms"].values())) for n in networks.values()]
        cells = [f"{ms:.1f} ({ms / whole:.0%})" if ms else "-" for ms, whole in shares]
        rows += [[part, *cells]]
    for label, key in (("Step, median", "profiled_step_ms"), ("Without profiler", "step_ms")):
        rows.append([label, *(f"{found[key]:.1f}" for found in networks.values())])
    return (
        f"{use.machine(record)}, {record['dtype']}; "
        f"milliseconds of a training step, means over steps and cores.\n\n"
        f"{markdown.table(('Part', *header), rows)}"
    )


def _times_ms(trainer: Trainer, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        trainer.train()
        trainer.wait()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _run(model: str) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--worker={model}", f"--dtype={_DTYPE.value}"]
    command += [f"--steps={_STEPS.value}", f"--warm_up={_WARM_UP.value}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise BenchmarkError(f"{model}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    app.run(main)
