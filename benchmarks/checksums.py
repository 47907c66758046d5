"""Measures the CPU seconds that checking hashes takes of a start; prints JSON.

    uv run python benchmarks/checksums.py --output=results/reliability.json

FER2013 must be prepared in the default data folder.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# In a process of its own: what a start is, up to a first step. Its own CPU seconds are all it says.
START = """
import time
import jax, numpy as np
from fer_jax import loop, train
from fer_jax.config import get_config
from fer_jax.data.prepare import load_dataset
from fer_jax.machine import devices
from fer_jax.runs import checkpoint
devices.setup()
devices.start()
config = get_config()
data = load_dataset(config.data)
model, mesh = loop.create_network(config)
training = loop.create_training(config, model, mesh, data.splits["train"].labels)
state = jax.device_get(training.create_state())
start_s = time.process_time()
def cpu_s(function):
    begun = time.process_time()
    for _ in range(5):
        function()
    return (time.process_time() - begun) / 5
from fer_jax.data import arrays
fields = [np.asarray(a) for s in data.splits.values()
          for a in (s.images, s.labels, s.ids, s.in_train)]
print({"start": start_s, "arrays": cpu_s(lambda: [arrays._checksum(a) for a in fields]),
       "checkpoint": cpu_s(lambda: checkpoint.checksums(state))})
"""


def main() -> None:
    """Does what the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="the record that the numbers go into")
    options = parser.parse_args()
    found = measure()
    print(json.dumps(found))
    if options.output:
        from fer_jax.report import reliability

        reliability.add(options.output, {"cpu_s": found})


def measure() -> dict[str, float]:
    """Returns the seconds of a start and of each kind of check in it, and the checks' share."""
    import ast

    from fer_jax.machine import environment
    from fer_jax.ops import build

    command = [sys.executable, "-c", START]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    found = ast.literal_eval(run.stdout.strip().splitlines()[-1])
    folder = environment.cache_folder()
    libraries = list(folder.glob("native_*.so")) if folder else []
    if libraries:
        begun = time.process_time()
        build._is_whole(libraries[0])
        found["library"] = time.process_time() - begun
    checks = sum(value for name, value in found.items() if name != "start")
    found = {name: round(value, 4) for name, value in found.items()}
    return found | {"share": round(checks / found["start"], 4)}


if __name__ == "__main__":
    main()
