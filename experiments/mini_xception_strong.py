"""mini-XCEPTION with the small network's recipe: what a recipe alone is worth.

uv run launch.py --config=experiments/mini_xception_strong.py
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "mini_xception_strong"
    config.model.name = "mini_xception"
    return config
