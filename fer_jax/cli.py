"""What `launch.py` does in each of its modes."""

import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from fer_jax import config as config_lib
from fer_jax.config import Config
from fer_jax.errors import FerError
from fer_jax.machine import devices, distributed
from fer_jax.ops import native
from fer_jax.runs import workdir
from fer_jax.runs.stop import Interrupted

log = logging.getLogger("fer_jax")


def run(
    mode: str,
    config: Config,
    folder: Path | None,
    *,
    split: str = "valid",
    merge: Sequence[Path] = (),
    repeats: int = 3,
    processes: tuple[str | None, int | None, int | None] = (None, None, None),
) -> int:
    """Runs one mode.

    Args:
      mode: `train`, `evaluate`, `benchmark` or `summary`.
      config: the whole configuration.
      folder: the run's folder, of `benchmark` the records'; None for the default one.
      split: of `evaluate`.
      merge: of `benchmark`: records made on other machines.
      repeats: of `benchmark`: seeds on each device.
      processes: as :func:`fer_jax.machine.distributed.initialize` takes them.

    Returns:
      The process's exit status. Expected errors end in one line on standard error.
    """
    devices.setup()
    return _status(lambda: _run(mode, config, folder, split, merge, repeats, processes))


def _run(mode, config, folder, split, merge, repeats, processes) -> None:
    from fer_jax import train
    from fer_jax.bench import table as benchmark

    config_lib.validate(config)
    if mode == "summary":
        _summary(config)
        return
    if mode == "benchmark":  # its processes start devices of their own
        benchmark.run(config, folder or benchmark.RESULTS, merge, repeats)
        return
    folder = folder or workdir.default_workdir(config.experiment, config.seed)
    distributed.initialize(*processes)
    devices.start()
    native.load()
    if mode == "evaluate":
        found = train.evaluate_best(config, folder, split)
        if distributed.is_first():
            _print_metrics({split: found})
        return
    results = train.train_and_evaluate(config, folder)
    if distributed.is_first():
        print_summary(results, folder)


def _status(mode: Callable[[], int | None]) -> int:
    """Runs a mode and returns the process's exit status; expected errors become one line."""
    try:
        return mode() or 0
    except Interrupted as interrupted:
        log.info("%s", interrupted)
        return 128 + interrupted.signum
    except KeyboardInterrupt:  # while data was fetched or prepared, or a second Ctrl-C
        log.error("Stopped by SIGINT: what was saved before is kept")
        return 128 + signal.SIGINT
    except FerError as error:
        log.error("launch.py: %s", error)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        log.error(
            "launch.py: the device's memory does not suffice (%s). If other programs use the "
            "device, give this one a share with the environment's XLA_PYTHON_CLIENT_MEM_FRACTION, "
            "such as 0.4; else choose a smaller --config.train.batch_size",
            str(error).splitlines()[0],
        )
        return 1


def study(
    experiments: Sequence[str],
    study_file: Path | None,
    *,
    seeds: int | None = None,
    shard: str = "0/1",
    overrides: Sequence[str] = (),
    dry_run: bool = False,
) -> int:
    """Trains several experiments, or what a study file declares; see :mod:`fer_jax.study.plan`.

    Args:
      experiments: names of files in `experiments/`; none of them if there is a study file.
      study_file: declares the runs instead.
      seeds: runs of each configuration; None: 1, or as many as the study file says.
      shard: `i/n`, the part of the runs that this machine takes.
      overrides: `field=value`, given to every run.
      dry_run: list the runs, and run none.

    Returns:
      The process's exit status: 1 if a run failed, 128 and the signal's number if interrupted.
    """
    from fer_jax.study import execute
    from fer_jax.study import plan as studies

    if bool(experiments) == bool(study_file):
        log.error("launch.py: --mode=study needs --experiments=NAME,NAME,... or --study=FILE")
        return 1
    # This process only plans: the accelerator and its memory are the runs'.
    jax.config.update("jax_platforms", "cpu")

    def plan_and_run() -> int:
        if study_file:
            runs = studies.plan_study(study_file, seeds, shard, overrides)
        else:
            runs = studies.plan(experiments, seeds or 1, shard, overrides)
        if dry_run:
            studies.show(runs)
            return 0
        return execute.execute(runs)

    return _status(plan_and_run)


def report(data: Config | None, folder: Path | None) -> int:
    """Makes tables, figures and pages from the records; see :mod:`fer_jax.report`.

    Args:
      data: None: bring docs/reproduction.md and README.md up to date. `config.data`: write the page
        with this data set's pictures instead.
      folder: of the page with pictures; None for `out/reproduction`, which git ignores.

    Returns:
      The process's exit status. Expected errors end in one line on standard error.
    """
    from fer_jax.data.prepare import load_dataset
    from fer_jax.report import page

    def make() -> None:
        if data is None:
            page.write_docs()
            log.info("%s and README.md are up to date", page.DOCS / "reproduction.md")
            return
        target = folder or Path("out") / "reproduction"
        page.write_illustrated(load_dataset(data), target)
        log.info("%s has the data set's pictures: do not publish it", target)

    return _status(make)


def _summary(config: Config) -> None:
    from fer_jax.models import create_model, summary

    print(summary.format_table(create_model(config.model)))


def print_summary(results: dict[str, Any], folder: Path) -> None:
    """Prints what a run learned and where its files are."""
    if "members" in results:
        done = f"the mean of {len(results['members'])} runs"
    else:
        done = (
            f"{results['epochs_run']} epochs in {results['seconds']['train']:.0f} s, best on valid "
            f"after epoch {results['best_epoch']}"
        )
    print(f"\n{results['experiment']}, seed {results['seed']}: {done}\n")
    _print_metrics(results["metrics"])
    if "views" in results:
        print(f"\nAveraged over views of each image ({results['views']['name']}):")
        _print_metrics(results["views"]["metrics"])
    files = {
        "results.json": "the record",
        "learning_curves.png": "loss and accuracy by epoch",
        "confusion_valid.png": "what is taken for what",
        "log.jsonl": "the epochs as they went, also in tensorboard",
    }
    print("\n`unique` leaves out images that also stand in train. Files:")
    for name, what in files.items():
        if (folder / name).exists():
            print(f"  {folder / name}   {what}")


def _print_metrics(metrics: dict[str, Any]) -> None:
    print(f"{'split':8}{'images':>8}{'accuracy':>10}{'unique':>9}{'loss':>8}{'macro-F1':>10}")
    for split, found in metrics.items():
        unique = found["accuracy_unique"]
        print(
            f"{split:8}{found['count']:>8}{found['accuracy']:>10.4f}"
            f"{'-' if unique is None else f'{unique:.4f}':>9}"
            f"{found['loss']:>8.4f}{found['macro_f1']:>10.4f}"
        )
