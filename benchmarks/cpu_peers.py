"""Compares the speed of this package, Keras and PyTorch in training networks on a CPU.

uv run python benchmarks/cpu_peers.py --torch_python=/path/to/python

Every measurement is a fresh process, and the peers take turns: a ratio compares two processes of
one round, minutes apart at most. The networks are the paper's and two with BatchNorm. See README.md
beside this file.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

import jax
from absl import app, flags

from fer_jax.bench import use
from fer_jax.ops import native
from fer_jax.report import markdown, speed
from fer_jax.runs import record, workdir

FORMAT = 1
FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parent / "results"
DOCUMENT = FOLDER.parent / "docs" / "performance.md"
OURS, BFLOAT16 = "fer_jax", "fer_jax_bf16"
PEERS = {
    OURS: "fer-jax",
    BFLOAT16: "fer-jax bfloat16",  # `config.model.dtype`, where that is not float32 again
    "fer_jax_xla": "fer-jax without C++",  # what it does where there is no compiler
    "keras": "Keras on TensorFlow",
    "keras_compile": "Keras with XLA",  # `jit_compile`, Keras's default
    "torch": "PyTorch eager",
    "torch_bf16": "PyTorch bfloat16",  # autocast: what a user with a new processor turns on
    "torch_compile": "torch.compile",
}
COMPARED_WITH = {"torch_bf16": BFLOAT16}  # in ratios; with all others it is OURS
TRAIN_PASSES = 3  # FLOPs of a training step in forward passes: forward and two gradients
WORKER_LIMIT_S = 900

_TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "Python of an environment with PyTorch and NumPy; without it, no PyTorch."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; each measures every peer once.", 1)
_COMPILE_REPEATS = flags.DEFINE_integer(
    "compile_repeats", 1, "Rounds that take in torch.compile and Keras with XLA, slow to start.", 0
)
_MODELS = flags.DEFINE_list(
    "models", ["arch01", "arch02", "arch03", "compact", "resnet18"], "Networks."
)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Seconds each measurement is timed for.", 0.0)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where the record goes; by default results/cpu_peers_<processor>.json, which "
    "docs/performance.md shows.",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and the batch it is trained with; `evaluate` once for each network."""

    model: str
    batch: int
    evaluate: bool

    @property
    def name(self) -> str:
        """The key of the case in the record."""
        return f"{self.model}_bs{self.batch}"


CASES = (
    Case("arch01", 96, True),
    Case("arch02", 96, True),
    Case("arch02", 16, False),
    Case("arch03", 96, True),
    Case("compact", 128, True),
    Case("resnet18", 128, True),
)

Run = dict[str, Any]  # case, peer, round, and the worker's numbers or `error`


def measure_all(
    cases: list[Case],
    torch_python: str | None,
    repeats: int,
    compile_repeats: int,
    seconds: float,
    left_out: Collection[str] = (),
) -> tuple[list[Run], list[dict[str, float]]]:
    """Runs every measurement, peers in turn.

    Args:
      cases: what to train.
      torch_python: Python that has PyTorch; None leaves PyTorch out.
      repeats: rounds.
      compile_repeats: rounds that the peers with a compiler take part in.
      seconds: how long each measurement is timed.
      left_out: peers that are not measured.

    Returns:
      The runs, and for each round the GFLOP/s of a matrix product by library.
    """
    runs, peaks = [], []
    with tempfile.TemporaryDirectory(prefix="fer_jax_cpu_peers_") as caches:
        env = os.environ | {
            "FER_JAX_CACHE": f"{caches}/jax",  # empty: the first start compiles everything
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        for turn in range(repeats):
            peak = _run([sys.executable, "matmul_peak.py", str(seconds / 2)], env)
            if "error" in peak:
                sys.exit(f"cpu_peers.py: matmul_peak.py failed: {peak['error']}")
            peaks.append(peak["gflops_per_s"])
            for case in cases:
                with_torch, with_compile = torch_python is not None, turn < compile_repeats
                for peer in order_of(turn, with_torch, with_compile, left_out):
                    start = time.perf_counter()
                    switch = {"FER_JAX_NATIVE": "0"} if peer == "fer_jax_xla" else {}
                    found = _run(_command(peer, case, torch_python, seconds), env | switch)
                    runs.append({"case": case.name, "peer": peer, "round": turn, **found})
                    took = time.perf_counter() - start
                    _report(runs[-1], f"round {turn + 1}/{repeats}", took)
    return runs, peaks


def order_of(
    turn: int, with_torch: bool, with_compile: bool, left_out: Collection[str] = ()
) -> list[str]:
    """Returns the peers of a round in the order they run; who comes first changes each time."""
    peers = [p for p in PEERS if p not in left_out and (with_torch or not p.startswith("torch"))]
    if not with_compile:
        peers = [p for p in peers if not p.endswith("_compile")]
    if turn and BFLOAT16 in left_out:  # emulated, many times slower, which one round shows
        peers = [p for p in peers if not p.endswith("_bf16")]
    first = turn % len(peers)
    return peers[first:] + peers[:first]


def _command(peer: str, case: Case, torch_python: str | None, seconds: float) -> list[str]:
    python = torch_python if torch_python and peer.startswith("torch") else sys.executable
    script = f"peer_{peer.removesuffix('_compile').removesuffix('_xla').removesuffix('_bf16')}.py"
    command = [python, script, case.model, str(case.batch), f"--seconds={seconds}"]
    command += ["--evaluate"] * case.evaluate
    command += ["--bfloat16"] * peer.endswith("_bf16")
    return command + ["--compile"] * peer.endswith("_compile")


def _run(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Runs a worker; returns its line, or its last words as `error`."""
    try:
        done = subprocess.run(
            command,
            cwd=FOLDER,
            env=env,
            capture_output=True,
            encoding="utf-8",
            timeout=WORKER_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {WORKER_LIMIT_S} s"}
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["nothing on standard error"]
        return {"error": f"exit status {done.returncode}: {words[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def _report(run: Run, progress: str, took: float) -> None:
    result = run["error"] if "error" in run else f"{run['train_images_per_s']:.0f} images/s"
    line = f"{progress}  {run['case']:<12} {PEERS[run['peer']]:<20} {result} ({took:.0f} s)"
    print(line, file=sys.stderr, flush=True)


def check_same_network(runs: list[Run]) -> None:
    """Raises ValueError unless all peers trained as many parameters."""
    counts: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
        if "parameters" in run:
            counts.setdefault(run["case"], set()).add((run["peer"], run["parameters"]))
    for case, found in counts.items():
        if len({parameters for _, parameters in found}) > 1:
            raise ValueError(f"{case}: the peers' parameters differ: {sorted(found)}")


def summarize(runs: list[Run], peaks: list[dict[str, float]]) -> dict[str, Any]:
    """Computes medians and ratios.

    Args:
      runs: from :func:`measure_all`.
      peaks: GFLOP/s of a matrix product by library, for each round.

    Returns:
      `matmul_gflops_per_s`, the best library's median; `cases`: case -> `train` and, where it was
      measured, `eval` (see :func:`_speed`) and `start_s`: peer -> seconds from the imports' end to
      the end of the first step, `first` in round 1 and `later` the median of the others.
    """
    peak = max(median(p[library] for p in peaks) for library in peaks[0])
    cases = {}
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        cases[case] = {
            "train": _speed(of_case, "train_images_per_s", TRAIN_PASSES, peak),
            "start_s": _starts(of_case),
        }
        if any("eval_images_per_s" in run for run in of_case):
            cases[case]["eval"] = _speed(of_case, "eval_images_per_s", 1, peak)
    return {"matmul_gflops_per_s": peak, "cases": cases}


def _by_peer(runs: list[Run], field: str) -> dict[str, dict[int, float]]:
    """Returns peer -> round -> number, without the runs that lack it."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if field in run:
            found.setdefault(run["peer"], {})[run["round"]] = run[field]
    return found


def _speed(runs: list[Run], field: str, passes: int, peak: float) -> dict[str, Any]:
    """Returns medians by peer, ratios of ours by peer, and our share of the peak.

    A ratio is ours / peer in one round; its median, smallest and largest value are given. Ours is
    what `COMPARED_WITH` says, where that was measured.
    """
    found = _by_peer(runs, field)
    ours = found.get(OURS, {})
    summary: dict[str, Any] = {"images_per_s": {}, "ratio": {}, "peak_share": None}
    for peer, numbers in found.items():
        summary["images_per_s"][peer] = {"median": median(numbers.values()), "n": len(numbers)}
    for peer, numbers in found.items():
        if peer == OURS:
            continue
        us = found.get(COMPARED_WITH.get(peer, OURS), ours)
        ratios = [us[turn] / numbers[turn] for turn in sorted(us.keys() & numbers.keys())]
        if ratios:
            summary["ratio"][peer] = {
                "median": median(ratios),
                "min": min(ratios),
                "max": max(ratios),
                "n": len(ratios),
            }
    if ours:
        flop = passes * next(run["flops"] for run in runs if "flops" in run)
        summary["peak_share"] = 1e-9 * flop * median(ours.values()) / peak
    return summary


def _starts(runs: list[Run]) -> dict[str, dict[str, float | None]]:
    starts = {}
    for peer, numbers in _by_peer(runs, "start_s").items():
        later = [seconds for turn, seconds in numbers.items() if turn > 0]
        starts[peer] = {"first": numbers.get(0), "later": median(later) if later else None}
    return starts


def format_tables(summary: dict[str, Any], peers: list[str]) -> str:
    """Returns the summary as Markdown.

    Args:
      summary: from :func:`summarize`.
      peers: the columns, ours among them.
    """
    others = [peer for peer in peers if peer != OURS]
    titles = [PEERS[OURS], *[PEERS[peer] for peer in others], *[f"vs {PEERS[p]}" for p in others]]
    parts = []
    for kind, title in (
        ("train", "Training, images/s"),
        ("eval", "Evaluation in batches of 256, images/s"),
    ):
        rows = [
            [_case_title(case), *_speed_cells(found[kind], others)]
            for case, found in summary["cases"].items()
            if kind in found
        ]
        if rows:
            parts.append(markdown.table([title, *titles, "share of peak"], rows))
    header = ["First step after imports, s"]
    for peer in [OURS, *others]:
        header += [f"{PEERS[peer]}, first start", "later"]
    rows = []
    for case, found in summary["cases"].items():
        starts = [found["start_s"].get(peer, {}) for peer in [OURS, *others]]
        cells = [_number(start.get(when), ".1f") for start in starts for when in ("first", "later")]
        rows.append([_case_title(case), *cells])
    parts.append(markdown.table(header, rows))
    parts.append(
        f"Medians of n fresh processes. Ratios: images/s of {PEERS[OURS]} by the peer's, paired by "
        "round: median (smallest to largest); with PyTorch bfloat16 it is fer-jax bfloat16 that is "
        "compared, where it was measured. Share of peak: FLOPs of convolutions and dense "
        f"layers (training: {TRAIN_PASSES} times the forward pass) against a 1024^3 float32 matrix "
        f"product at {summary['matmul_gflops_per_s']:.0f} GFLOP/s."
    )
    return "\n\n".join(parts)


def _case_title(case: str) -> str:
    model, batch = case.split("_bs")
    names = {"compact": "`compact`", "resnet18": "`resnet18`, 32 wide"}
    return f"{names.get(model, f'Architecture {model.removeprefix("arch")}')}, batch {batch}"


def _speed_cells(found: dict[str, Any], others: list[str]) -> list[str]:
    cells = []
    for peer in [OURS, *others]:
        speed = found["images_per_s"].get(peer)
        cells.append(f"{speed['median']:.0f} (n={speed['n']})" if speed else "-")
    for peer in others:
        ratio = found["ratio"].get(peer)
        cells.append(
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "-"
        )
    return [*cells, _number(found["peak_share"], ".0%")]


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _chosen_cases(models: list[str]) -> list[Case]:
    allowed = sorted({case.model for case in CASES})
    for model in models:
        if model not in allowed:
            sys.exit(f"cpu_peers.py: no network {model!r} in --models; use {', '.join(allowed)}")
    return [case for case in CASES if case.model in models]


def _find_torch(python: str | None) -> str | None:
    """Returns the absolute path of a Python that has PyTorch, None if none was given."""
    if python is None:
        print(
            "No --torch_python=PATH: PyTorch's columns are left out. README.md beside this file "
            "says how to make an environment for it.",
            file=sys.stderr,
        )
        return None
    # Absolute, as workers run in another folder; links are kept, they make the environment.
    found = os.path.abspath(shutil.which(python) or python)
    try:
        subprocess.run([found, "-c", "import torch, numpy"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or str(error).encode()
        reason = words.decode().strip().splitlines()[-1]
        sys.exit(f"cpu_peers.py: --torch_python={python} cannot import torch and numpy: {reason}")
    return found


def record_of(device: dict[str, Any]) -> Path:
    """Returns where the record of a kind of processor lies, such as `cpu_peers_amd_epyc.json`."""
    words = re.sub(r"\(R\)|\(TM\)|Processor|CPU", "", device["kind"]).split()
    fastest = [name for name in device["cpu_features"] if name.endswith("_bf16")][-1:]
    return RESULTS / f"cpu_peers_{'_'.join(words + fastest).lower()}.json"


def updated_document(text: str, folder: Path = RESULTS) -> str:
    """Returns the text of `docs/performance.md` with the tables of all records in their place."""
    parts = []
    for found in speed.load(folder):
        peers = [peer for peer in PEERS if any(run["peer"] == peer for run in found["runs"])]
        made = "With `--rounds={repeats} --compile_repeats={compile_repeats}`:".format(
            **found["settings"]
        )
        parts.append(f"### {use.machine(found)}\n\n{made}\n\n{format_tables(found, peers)}")
    return markdown.replace_block(text, "peers", "\n" + "\n\n".join(parts) + "\n")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"cpu_peers.py: unexpected argument {argv[1]!r}; every option is a --flag")
    cases = _chosen_cases(_MODELS.value)
    torch_python = _find_torch(_TORCH_PYTHON.value)
    settings = {
        "repeats": _ROUNDS.value,
        "compile_repeats": _COMPILE_REPEATS.value,
        "seconds": _SECONDS.value,
    }
    jax.config.update("jax_platforms", "cpu")
    native.load()
    left_out = [] if native.has_bfloat16() else [BFLOAT16]
    for peer in left_out:
        print(f"{PEERS[peer]} is left out: it would be float32 here", file=sys.stderr)
    runs, peaks = measure_all(cases, torch_python, **settings, left_out=left_out)
    check_same_network(runs)
    summary = summarize(runs, peaks)
    peers = [peer for peer in PEERS if any(run["peer"] == peer for run in runs)]
    print(format_tables(summary, peers))

    environment = record.environment()
    for run in runs:
        environment["versions"] |= run.pop("versions", {})
    found = {"format": FORMAT, "environment": environment, "settings": settings, **summary}
    found |= {"matmul": peaks, "runs": runs}
    output = Path(_OUTPUT.value) if _OUTPUT.value else record_of(environment["device"])
    workdir.write_text(output, json.dumps(found, indent=1) + "\n")
    print(f"\nWritten: {output}", file=sys.stderr)
    if output.resolve().parent == RESULTS:
        text = DOCUMENT.read_text(encoding="utf-8")
        workdir.write_text(DOCUMENT, updated_document(text))


if __name__ == "__main__":
    app.run(main)
