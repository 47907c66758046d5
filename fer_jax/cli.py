"""What `launch.py` does in each of its modes."""

import logging
from pathlib import Path

from fer_jax import config as config_lib
from fer_jax import devices, workdir
from fer_jax.config import Config

log = logging.getLogger("fer_jax")


def run(mode: str, config: Config, folder: Path | None, split: str) -> int:
    """Runs one mode.

    Args:
      mode: `train`, `evaluate` or `summary`.
      config: the whole configuration.
      folder: the run's folder; None for the default one.
      split: of `evaluate`.

    Returns:
      The process's exit status. Expected errors end in one line on standard error.
    """
    devices.setup()
    from fer_jax import train
    from fer_jax.checkpoint import CheckpointError
    from fer_jax.data.sources import DataError

    expected = (ValueError, DataError, CheckpointError, train.TrainingError, workdir.WorkdirError)
    folder = folder or workdir.default_workdir(config.experiment, config.seed)
    try:
        config_lib.validate(config)
        if mode == "summary":
            _summary(config)
        elif mode == "evaluate":
            _evaluate(config, folder, split)
        else:
            train.print_summary(train.train_and_evaluate(config, folder), folder)
    except train.Interrupted as interrupted:
        log.info("%s", interrupted)
        return 128 + interrupted.signum
    except expected as error:
        log.error("launch.py: %s", error)
        return 1
    return 0


def _summary(config: Config) -> None:
    from fer_jax.models import create_model, summary

    print(summary.format_table(create_model(config.model)))


def _evaluate(config: Config, folder: Path, split: str) -> None:
    from fer_jax import train

    found = train.evaluate_best(config, folder, split)
    print(workdir.to_json({f"{split}/{name}": value for name, value in found.items()}))
