"""The paper's Architecture 03 with the small network's recipe: what a recipe alone is worth.

    uv run launch.py --config=experiments/arch03_strong.py

It has no BatchNorm, so the rate is lower.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "arch03_strong"
    config.model.name = "arch03"
    config.train.learning_rate = 0.02
    return config
