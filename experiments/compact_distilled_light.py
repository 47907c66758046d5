"""The taught small network again, with light augmentation.

    uv run launch.py --config=experiments/compact_distilled_light.py

As `experiments/compact_distilled.py`, but with the augmentation of `experiments/compact.py`: the
shipped weights `compact_distilled` are of its seed 0.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = _config("compact_distilled")
    config.experiment = "compact_distilled_light"
    config.augment = _config("compact").augment
    return config


def _config(name):
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))["get_config"]()
