"""The study's Architecture 03; its batch size is not given, 96 is the better of the two it names.

uv run launch.py --config=experiments/arch03.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch03"
    config.model.name = "arch03"
    return config
