"""The sequential fully-CNN with the small network's recipe, and with its dropout.

    uv run launch.py --config=experiments/fully_cnn_strong.py

Dropout is 0.2 here and 0.5 in `fully_cnn.py`: the two differ by the recipe and by that together.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "fully_cnn_strong"
    config.model.name = "fully_cnn"
    config.model.dropout = 0.2
    return config
