"""Trains like `launch.py`, and kills itself with SIGKILL where an argument says.

python killed_run.py CONFIG WORKDIR WHEN...

WHEN is one of

    step:7     after step 7, before anything else happens
    save:8:20  20 ms after the checkpoint of step 8 is begun, before any step after it
    never

and each is a run in a process of its own, one after another in the same folder, forked from this
one before JAX starts: that spares importing. A line a run: WHEN, the exit status, and `results` or
`none`, whether the folder then holds results.
"""

import importlib.util
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - what a run imports late, imported once
import tensorboardX  # noqa: F401

from fer_jax import train
from fer_jax.machine import devices
from fer_jax.ops import native
from fer_jax.runs import checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_step(number: int):
    def on_step(state):
        if int(state.step) == number:
            die()

    return on_step


def kill_during_save(number: int, delay_ms: int) -> None:
    save = checkpoint.Checkpointer.save

    def killed(self, state, progress, score):
        if int(state.step) == number:
            threading.Timer(delay_ms / 1000, die).start()
        save(self, state, progress, score)
        if int(state.step) == number:
            threading.Event().wait()  # however fast steps are, none overtakes the kill

    checkpoint.Checkpointer.save = killed


def run(config, workdir: Path, when: str) -> None:
    kind, *numbers = when.split(":")
    on_step = kill_after_step(int(numbers[0]) if kind == "step" else -1)
    if kind == "save":
        kill_during_save(int(numbers[0]), int(numbers[1]))
    devices.setup()
    native.load()
    train.train_and_evaluate(config, workdir, on_step)


def forked(function, *arguments) -> int:
    """Returns the exit status of a process that calls `function`, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    path, workdir, *whens = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # JAX warns of threads, of which there are none before it has devices.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    for when in whens:
        status = forked(run, module.get_config(), Path(workdir), when)
        left = "results" if (Path(workdir) / "results.json").exists() else "none"
        print(when, status, left, flush=True)


if __name__ == "__main__":
    main()
