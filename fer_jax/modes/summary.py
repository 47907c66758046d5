"""Show the network's layers."""

from pathlib import Path
from typing import Any


def run(config: Any, workdir: Path | None) -> None:
    """Prints the layer table; `workdir` is not read."""
    from fer_jax.config import validate
    from fer_jax.data.prepare import load_dataset
    from fer_jax.labels import CLASSES
    from fer_jax.machine import devices
    from fer_jax.models import create_model, summary

    devices.setup()
    validate(config)
    # Only faces of one's own have other classes than the seven.
    classes = load_dataset(config.data).classes if config.data.name == "folder" else CLASSES
    print(summary.format_table(create_model(config.model, len(classes))))
