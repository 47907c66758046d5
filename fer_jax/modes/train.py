"""Train, or go on, and evaluate the best checkpoint on every split."""

from pathlib import Path
from typing import Any

from absl import flags

_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Training in several processes: host:port of process 0. Slurm and Open MPI need no such flag.",
)
_COUNT = flags.DEFINE_integer("num_processes", None, "Training in several processes: how many.", 1)
_ID = flags.DEFINE_integer("process_id", None, "Training in several processes: this one's.", 0)


def run(config: Any, workdir: Path | None) -> None:
    """Trains, and prints what the run learned."""
    folder = start(config, workdir)
    from fer_jax import train
    from fer_jax.machine import distributed

    results = train.train_and_evaluate(config, folder)
    if distributed.is_first():
        print_summary(results, folder)


def start(config: Any, workdir: Path | None) -> Path:
    """Starts processes and devices; returns the run's folder."""
    from fer_jax.config import validate
    from fer_jax.machine import devices, distributed
    from fer_jax.ops import native
    from fer_jax.runs.workdir import default_workdir

    devices.setup()
    validate(config)
    distributed.initialize(_ADDRESS.value, _COUNT.value, _ID.value)
    devices.start()
    native.load()
    return workdir or default_workdir(config.experiment, config.seed)


def print_summary(results: dict[str, Any], folder: Path) -> None:
    """Prints what a run learned and where its files are."""
    from fer_jax.runs.record import format_metrics

    if "members" in results:
        done = f"the mean of {len(results['members'])} runs"
    else:
        done = (
            f"{results['epochs_run']} epochs in {results['seconds']['train']:.0f} s, best on valid "
            f"after epoch {results['best_epoch']}"
        )
    print(f"\n{results['experiment']}, seed {results['seed']}: {done}\n")
    print(format_metrics(results["metrics"]))
    if "views" in results:
        print(f"\nAveraged over views of each image ({results['views']['name']}):")
        print(format_metrics(results["views"]["metrics"]))
    files = {
        "results.json": "the record",
        "learning_curves.png": "loss and accuracy by epoch",
        "confusion_valid.png": "what is taken for what",
        "log.jsonl": "the epochs as they went, also in tensorboard",
    }
    print("\n`without copies` leaves out images that also stand in train. Files:")
    for name, what in files.items():
        if (folder / name).exists():
            print(f"  {folder / name}   {what}")
