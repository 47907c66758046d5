"""The study's Architecture 02 at batch 96.

uv run launch.py --config=experiments/arch02_bs96.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch02_bs96"
    config.model.name = "arch02"
    config.train.batch_size = 96
    return config
