"""`launch.py --mode=benchmark`: one experiment's training speed on each kind of device here.

Each device and seed is measured in a fresh process by :mod:`fer_jax.bench.measure`. The records
collect in `results/benchmark_<device>.json`; `uv run python -m fer_jax.bench.table` brings the
tables in docs/performance.md up to date with them, and those of :mod:`fer_jax.bench.use`.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fer_jax.bench import use
from fer_jax.config import Config
from fer_jax.data.sources import COUNTS
from fer_jax.errors import BenchmarkError
from fer_jax.report import markdown
from fer_jax.report.paper import PAPER
from fer_jax.report.records import MISSING, NOT_MEASURED
from fer_jax.runs import record as record_lib
from fer_jax.runs import workdir as wd
from fer_jax.study.plan import ROOT

FORMAT = 1
RESULTS = ROOT / "results"
BUDGET_S = 8.0  # of timed steps for each pipeline of a process
DATA = "random uint8 images, as many in each split as FER2013 has"
_FIELDS = ("environment", "config", "counts", "forward_flops_per_image", "measured")


def run(
    config: Config, folder: Path, merge: Sequence[Path] = (), repeats: int = 3, cpu: bool = True
) -> None:
    """Measures an experiment on every kind of device here and prints the table.

    Args:
      config: the whole configuration; its experiment names the entry, its seed is the first.
      folder: where records are kept, such as `RESULTS`.
      merge: records made on other machines, to be added to those in `folder`.
      repeats: seeds for each device, each in a process of its own; 0 measures nothing.
      cpu: measure it too where there is an accelerator.

    Raises:
      BenchmarkError: if a process fails, a record to be merged is none, or the folder holds
        measurements of another machine with the same device.
    """
    for found in [_read(path) for path in merge]:
        _add(found, folder)
    if repeats:
        _measure_all(config, folder, repeats, cpu)
    print(table(load(folder), config.experiment))


def _measure_all(config: Config, folder: Path, repeats: int, cpu: bool) -> None:
    here = [_ask({}, os.environ)]
    if here[0]["platform"] == "cpu":
        print(
            "No accelerator here: the CPU alone is measured. A record made elsewhere can be "
            "added with --merge=PATH",
            file=sys.stderr,
        )
    elif cpu:
        here.insert(0, _ask({}, _environment("cpu")))
    for device in here:
        _kept(device, folder)  # or minutes are measured for nothing
    for device in here:
        _add(_measure(config, device["platform"], repeats), folder)


def _measure(config: Config, platform: str, repeats: int) -> dict[str, Any]:
    """Returns the record of one experiment on one device."""
    counts = {split: sum(per_class) for split, per_class in COUNTS.items()}
    answers = []
    for seed in range(config.seed, config.seed + repeats):
        plain = config.to_dict() | {"seed": seed}
        print(f"{config.experiment} on {platform}, seed {seed} ...", file=sys.stderr)
        task = {"config": plain, "counts": counts, "budget_s": BUDGET_S}
        answers.append(_ask(task, _environment(platform)))
    first = answers[0]
    entry = {name: first[name] for name in _FIELDS if name != "measured"}
    entry["config"]["seed"] = config.seed
    entry |= {"data": DATA, "runs": [answer["measured"] for answer in answers]}
    device = entry["environment"].pop("device")
    return {"format": FORMAT, "device": device, "entries": {config.experiment: entry}}


def _environment(platform: str) -> dict[str, str]:
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if platform == "cpu" else {}
    return os.environ | hidden


def _ask(task: dict[str, Any], environment) -> dict[str, Any]:
    """Gives a fresh process a task and returns its answer; its errors show as they come."""
    if task:
        task = task | {"started": time.time()}
    process = subprocess.run(
        [sys.executable, "-m", "fer_jax.bench.measure"],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if process.returncode:
        raise BenchmarkError(
            f"the measuring process ended with status {process.returncode}; what it said is above"
        )
    return json.loads(process.stdout.splitlines()[-1])


# Records


def file_name(device: dict[str, Any]) -> str:
    """Returns a device's file name, such as `benchmark_nvidia_h200.json`.

    A processor's tells what it is able to do and how many cores there are.

    Args:
      device: as in a record.
    """
    words = [record_lib.device_name(device)]
    if device["platform"] == "cpu":
        words += device.get("cpu_features", [])
    return f"benchmark_{re.sub('[^a-z0-9]+', '_', ' '.join(words).lower()).strip('_')}.json"


def load(folder: Path) -> list[dict[str, Any]]:
    """Returns the records in a folder, the CPU's first."""
    found = [_read(path) for path in sorted(folder.glob("benchmark_*.json"))]
    return sorted(found, key=lambda record: record["device"]["platform"] != "cpu")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}, not {FORMAT}")
        file_name(found["device"])
        for entry in found["entries"].values():
            if not entry["runs"]:
                raise ValueError("an entry has no runs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise BenchmarkError(
            f"{path} is no benchmark record ({reason}); give a benchmark_<device>.json that "
            "--mode=benchmark wrote"
        ) from error
    return found


def _add(found: dict[str, Any], folder: Path) -> None:
    """Adds a record's entries to its device's file; an entry there of the same name is replaced."""
    entries = _kept(found["device"], folder) | found["entries"]
    path = folder / file_name(found["device"])
    wd.write_json(path, found | {"entries": dict(sorted(entries.items()))})


def _kept(device: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the entries of a device's file, none if there is no file."""
    path = folder / file_name(device)
    if not path.exists():
        return {}
    before = _read(path)
    if before["device"] != device:
        raise BenchmarkError(
            f"{path} holds measurements of another machine ({before['device']}, not {device}); "
            "move it away, or name another folder with --workdir=PATH"
        )
    return before["entries"]


# The table


def table(records: list[dict[str, Any]], experiment: str) -> str:
    """Returns one experiment's table as Markdown: a row a quantity, a column a device.

    Over several seeds a cell is the median with the smallest and the largest value.
    """
    entries = [(r["device"], r["entries"].get(experiment)) for r in records]
    columns = [(device, entry) for device, entry in entries if entry]
    if not columns:
        return f"`{experiment}`: {NOT_MEASURED}."
    baseline = next((entry for device, entry in columns if device["platform"] == "cpu"), None)
    lengths = {entry["config"]["train"]["epochs"] for _, entry in columns}
    alike = len(lengths) == 1
    epochs = f"{min(lengths)} epochs" if alike else "All epochs"
    rows = [
        ("**One epoch**", _epoch),
        (f"**{epochs}**, each with validation", lambda e: _all_epochs(e, not alike)),
        ("Speed against the first CPU", lambda entry: _ratio(entry, baseline)),
        ("Training, data on the device", _rate("resident")),
        ("Training, through `tf.data`", _rate("stream")),
        ("Step, median (quartiles)", _step),
        ("Evaluation", lambda e: _spread(e, lambda r: r["evaluate"]["images_per_s"], " images/s")),
        ("Compilation", lambda e: _spread(e, lambda r: r["resident"]["compile_s"], " s")),
        (
            "Process start to first step (on an accelerator: epoch)",
            lambda e: _spread(e, _startup, " s"),
        ),
        ("Peak memory", lambda e: _spread(e, lambda r: r["peak_memory_mib"], " MiB")),
        ("Matrix products, float32", _matmul("float32")),
        ("Matrix products, bfloat16", _matmul("bfloat16")),
        ("Memory, read and written", _bandwidth),
        ("Share of the matrix-product rate", lambda e: _spread(e, lambda r: _share(e, r), " %")),
        ("Epoch, were it matrix products", lambda e: _spread(e, lambda r: _by_flops(e, r), " s")),
        (
            "Epoch, were it reading and writing",
            lambda e: _spread(e, lambda r: _by_bytes(e, r), " s"),
        ),
    ]
    cells = [[title, *(cell(entry) for _, entry in columns)] for title, cell in rows]
    cells = [row for row in cells if set(row[1:]) != {MISSING}]
    header = [f"`{experiment}`", *(record_lib.device_name(device) for device, _ in columns)]
    shown = markdown.table(header, cells, text=range(len(header)))
    if experiment in PAPER:
        hours = PAPER[experiment][2]
        shown += f"\n\nThe paper: {hours} h on its CPU; after how many epochs goes unsaid."
    return shown


def _spread(entry: dict[str, Any], value: Callable[[dict], float | None], unit: str) -> str:
    """Formats a quantity of all runs; `MISSING` if it cannot be told of one of them."""
    values = [value(r) for r in entry["runs"]]
    known = [x for x in values if x is not None]
    return _format(known, unit) if len(known) == len(values) else MISSING


def _format(values: list[float], unit: str) -> str:
    middle = f"{_number(statistics.median(values))}{unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    """Formats with three digits, more before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _epoch(entry: dict[str, Any]) -> str:
    return _spread(entry, lambda r: r["resident"]["epoch_s"], " s")


def _all_epochs(entry: dict[str, Any], with_number: bool) -> str:
    epochs = entry["config"]["train"]["epochs"]

    def total(r: dict[str, Any]) -> float:
        compile_s = r["resident"]["compile_s"] + r["evaluate"]["compile_s"]
        return compile_s + epochs * (r["resident"]["epoch_s"] + r["evaluate"]["valid_s"])

    return _spread(entry, total, " s") + f", {epochs} epochs" * with_number


def _ratio(entry: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    if baseline is None or entry is baseline:
        return "1" if baseline else MISSING
    speeds = [[r["resident"]["images_per_s"] for r in e["runs"]] for e in (entry, baseline)]
    return _format([ours / theirs for ours, theirs in itertools.product(*speeds)], "")


def _rate(pipeline: str) -> Callable[[dict[str, Any]], str]:
    def rate(entry: dict[str, Any]) -> str:
        if any(r[pipeline] is None for r in entry["runs"]):
            return "not measured: no TensorFlow there"
        return _spread(entry, lambda r: r[pipeline]["images_per_s"], " images/s")

    return rate


def _step(entry: dict[str, Any]) -> str:
    steps = [r["resident"]["step_ms"] for r in entry["runs"]]
    median = statistics.median(s["median"] for s in steps)
    low, high = (statistics.median(s["quartiles"][i] for s in steps) for i in (0, 1))
    return f"{_number(median)} ms ({_number(low)} to {_number(high)})"


def _startup(r: dict[str, Any]) -> float:
    return r["startup_to_first_step_s"]


def _matmul(dtype: str) -> Callable[[dict[str, Any]], str]:
    return lambda e: _spread(e, lambda r: r["matmul_flops_per_s"][dtype] / 1e9, " GFLOP/s")


def _bandwidth(entry: dict[str, Any]) -> str:
    return _spread(entry, lambda r: r["memory_bytes_per_s"] / 1e9, " GB/s")


def _share(entry: dict[str, Any], r: dict[str, Any]) -> float | None:
    """Percent of the matrix-product rate; backward costs twice the forward pass.

    None if a run does not say which type `auto` came to.
    """
    needed = 3 * entry["forward_flops_per_image"] * r["resident"]["images_per_s"]
    # Runs that do not say what their activations were have them as they were asked for.
    dtype = r.get("activations", entry["config"]["model"]["dtype"])
    rate = r["matmul_flops_per_s"].get(dtype)
    return None if rate is None else 100 * needed / rate


def _by_flops(entry: dict[str, Any], r: dict[str, Any]) -> float | None:
    share = _share(entry, r)
    return None if share is None else r["resident"]["epoch_s"] * share / 100


def _by_bytes(entry: dict[str, Any], r: dict[str, Any]) -> float | None:
    if r["step_bytes"] is None:
        return None
    steps = entry["counts"]["train"] // entry["config"]["train"]["batch_size"]
    return steps * r["step_bytes"] / r["memory_bytes_per_s"]


def updated_docs(text: str, folder: Path = RESULTS) -> str:
    """Returns docs/performance.md's text with the tables of all records in `folder`."""
    records = load(folder)
    names = sorted({name for record in records for name in record["entries"]} | set(PAPER))
    parts = [table(records, name) for name in names]
    if all(record["device"]["platform"] == "cpu" for record in records):
        parts.append(f"On a GPU: {NOT_MEASURED}.")
    text = markdown.replace_block(text, "benchmark-tables", "\n" + "\n\n".join(parts) + "\n")
    return markdown.replace_block(text, "use", f"\n{use.tables(folder)}\n")


def main() -> None:
    """Brings docs/performance.md up to date."""
    path = ROOT / "docs" / "performance.md"
    wd.write_text(path, updated_docs(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
