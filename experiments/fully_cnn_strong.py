"""The sequential fully-CNN with the small network's recipe: what a recipe alone is worth.

uv run launch.py --config=experiments/fully_cnn_strong.py
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "fully_cnn_strong"
    config.model.name = "fully_cnn"
    return config
