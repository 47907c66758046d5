"""Trains like `launch.py`, and kills itself with SIGKILL where the last argument says.

python killed_run.py CONFIG WORKDIR step:7     after step 7, before anything else happens
python killed_run.py CONFIG WORKDIR save:8:20  20 ms after the checkpoint of step 8 is begun, before
                                               any step after it
python killed_run.py CONFIG WORKDIR never
"""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

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


def main() -> None:
    path, workdir, when = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind, *numbers = when.split(":")
    on_step = kill_after_step(int(numbers[0]) if kind == "step" else -1)
    if kind == "save":
        kill_during_save(int(numbers[0]), int(numbers[1]))
    devices.setup()
    native.load()
    train.train_and_evaluate(module.get_config(), Path(workdir), on_step)


if __name__ == "__main__":
    main()
