"""Times prediction: a face, many faces, frames with a face; beside ONNX Runtime and `fer`.

    uv run python benchmarks/predict.py --weights=compact --fer_python=/path/to/python

Prints a table and writes `results/predict.json`. Each measurement is a fresh process that may use
so many cores as it says; peers take turns, and each number is the median over the rounds. A face is
a decoded 48x48 grey image, from the call to the probabilities on the host. Frames are a photograph
that matplotlib ships, 640 pixels wide: found, cut out and predicted, beside the detector alone.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from absl import app, flags
from workload import repeat

from fer_jax.errors import BenchmarkError
from fer_jax.machine import environment
from fer_jax.report import markdown
from fer_jax.runs import workdir

ROOT = Path(__file__).resolve().parent.parent
MANY = 256  # images at a time

_WEIGHTS = flags.DEFINE_string("weights", None, "as `fer-jax predict` takes them")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of all measurements", 1)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "each measurement is timed for", 0.0)
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "results" / "predict.json"), "the record")
_FER_PYTHON = flags.DEFINE_string(
    "fer_python", None, "Python of an environment with the package `fer`; without it, no `fer`"
)
_WORKER = flags.DEFINE_string("worker", None, "internal: the measurement of this process")


def ours(count: int, weights: str | None, seconds: float, in_cpp: bool = True) -> dict[str, float]:
    """Times `fer_jax.load(...).predict` of so many images."""
    import fer_jax

    if not in_cpp:
        os.environ["FER_JAX_NATIVE"] = "0"
    start = time.perf_counter()
    predictor = fer_jax.load(weights)
    loaded = time.perf_counter() - start
    images = faces(count)
    return repeat(lambda: predictor.predict(images), seconds) | {"load_s": loaded}


def onnx(
    count: int, weights: str | None, seconds: float, kernels: str = "float32"
) -> dict[str, float]:
    """Times ONNX Runtime with the exported network."""
    import onnxruntime

    from fer_jax.apps import onnx as export
    from fer_jax.apps.load import load_network

    network = load_network(weights)
    data = export.export(network.model, network.variables, network.metadata, kernels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = environment.cpu_cores()
    session = onnxruntime.InferenceSession(data, options)
    images = faces(count)
    found = repeat(lambda: session.run(["probabilities"], {"images": images}), seconds)
    return found | {"bytes": float(len(data))}


def frames(of_video: bool, weights: str | None, seconds: float) -> dict[str, float]:
    """Times a frame with one face, alone or as a video's are looked at, and the detector alone."""
    from matplotlib import cbook
    from PIL import Image

    import fer_jax
    from fer_jax.apps.detect import Detector
    from fer_jax.apps.run import CHUNK_PICTURES

    together = CHUNK_PICTURES if of_video else 1
    path = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    photograph = Image.open(path).convert("RGB")
    size = (640, round(640 * photograph.height / photograph.width))
    picture = np.asarray(photograph.resize(size))
    predictor = fer_jax.load(weights)
    if len(predictor.detect_and_predict(picture)) != 1:
        raise BenchmarkError("the photograph's face was not found")
    whole = repeat(lambda: predictor.predict_pictures([picture] * together), seconds)
    detector = Detector()
    alone = repeat(lambda: detector(picture), seconds)
    per_s = together * whole["per_s"]
    return {
        "ms": whole["ms"] / together,
        "per_s": per_s,
        "detector_per_s": alone["per_s"],
        "of_detector": per_s / alone["per_s"],
    }


def faces(count: int) -> np.ndarray:
    """Returns `[count, 48, 48]` uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48), np.uint8)


# Name -> cores, and what is called with weights and seconds.
MEASUREMENTS: dict[str, tuple[int, Callable[[str | None, float], dict[str, float]]]] = {
    "one face": (2, lambda w, s: ours(1, w, s)),
    "one face, one core": (1, lambda w, s: ours(1, w, s)),
    "one face, without C++": (2, lambda w, s: ours(1, w, s, in_cpp=False)),
    f"{MANY} faces": (2, lambda w, s: ours(MANY, w, s)),
    f"{MANY} faces, without C++": (2, lambda w, s: ours(MANY, w, s, in_cpp=False)),
    "one face, ONNX Runtime": (2, lambda w, s: onnx(1, w, s)),
    "one face, one core, ONNX Runtime": (1, lambda w, s: onnx(1, w, s)),
    f"{MANY} faces, ONNX Runtime": (2, lambda w, s: onnx(MANY, w, s)),
    "one face, ONNX Runtime, int8 kernels": (2, lambda w, s: onnx(1, w, s, "int8")),
    "a frame of 640 pixels": (2, lambda w, s: frames(False, w, s)),
    "a frame of a video of 640 pixels": (2, lambda w, s: frames(True, w, s)),
}

# The same of the package `fer`: name -> cores, and what peer_fer.py is asked for.
FER = {
    "one face, fer": (2, "face"),
    "one face, one core, fer": (1, "face"),
    "a frame of 640 pixels, fer": (2, "frame"),
}


def main(_: list[str]) -> None:
    """Measures everything, or as a worker one of it."""
    if _WORKER.value:
        cores, measure = MEASUREMENTS[_WORKER.value]
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        os.sched_setaffinity(0, allowed)
        found = measure(_WEIGHTS.value, _SECONDS.value)
        print(json.dumps(found | {"cores": len(allowed)}))
        return
    compile_library = "from fer_jax.ops import native; native.load()"  # as training leaves it
    subprocess.run([sys.executable, "-c", compile_library], env=_environment(), check=True)
    names = list(MEASUREMENTS)
    record: dict[str, Any] = {"weights": _WEIGHTS.value}
    if _FER_PYTHON.value:
        names += FER
        record["fer"] = _fer_versions(_FER_PYTHON.value)
    rounds = [{name: _run(name) for name in names} for _ in range(_ROUNDS.value)]
    medians = {
        name: {key: median(found[name][key] for found in rounds) for key in rounds[0][name]}
        for name in names
    }
    rows = [[name, f"{m['ms']:.2f}", f"{m['per_s']:,.1f}"] for name, m in medians.items()]
    print(markdown.table(("What", "ms a call", "calls a second"), rows))
    record |= {"medians": medians, "rounds": rounds}
    workdir.write_json(Path(_OUTPUT.value), record | {"environment": environment.describe()})


def _environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu"}


def _fer_versions(python: str) -> dict[str, str]:
    code = "import importlib.metadata as m; print(m.version('fer'), m.version('tensorflow'))"
    found = _output("--fer_python", [python, "-c", code])
    return dict(zip(("fer", "tensorflow"), found.split(), strict=True))


def _command(name: str) -> list[str]:
    command = [sys.executable, __file__, f"--worker={name}"]
    if name in FER:
        cores, what = FER[name]
        peer = str(Path(__file__).with_name("peer_fer.py"))
        command = [_FER_PYTHON.value, peer, what, f"--cores={cores}"]
    elif _WEIGHTS.value:
        command.append(f"--weights={_WEIGHTS.value}")
    return [*command, f"--seconds={_SECONDS.value}"]


def _run(name: str) -> dict[str, float]:
    return json.loads(_output(name, _command(name)))


def _output(name: str, command: list[str]) -> str:
    """Returns the last line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise BenchmarkError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    app.run(main)
