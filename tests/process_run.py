"""Trains the tiny network as one of several processes.

python process_run.py ADDRESS PROCESSES ID DEVICES_HERE DATA_DIR WORKDIR PIPELINE EPOCHS [TEACHER]
"""

import sys
from pathlib import Path

import helpers  # registers the tiny network
import jax

from fer_jax import config as config_lib
from fer_jax import predict, steps, train
from fer_jax.machine import distributed
from fer_jax.ops import native


def tiny_config(data_dir: str, pipeline: str, epochs: int):
    config = helpers.tiny_config(config_lib.get_config(), data_dir)
    config.data.pipeline = pipeline
    config.train.devices = 0
    config.train.epochs = epochs
    return config


def main() -> None:
    address, processes, process_id, count, data_dir, workdir, pipeline, epochs = sys.argv[1:9]
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_num_cpu_devices", int(count))
    distributed.initialize(address, int(processes), int(process_id))
    native.load()
    config = tiny_config(data_dir, pipeline, int(epochs))
    if pipeline == "scan":  # what an accelerator runs: epochs and evaluation as one program each
        config.data.pipeline = "resident"
        steps.is_scanned = predict.is_scanned = lambda mesh: True
    if teacher := sys.argv[9:]:
        config.train.teachers = tuple(teacher)
        config.train.distill_weight = 0.5
    results = train.train_and_evaluate(config, Path(workdir))
    print("accuracy", results["metrics"]["test"]["accuracy"], results["devices"])


if __name__ == "__main__":
    main()
