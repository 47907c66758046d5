"""Nishchal et al. 2018: the full Xception of Chollet 2017.

uv run launch.py --config=experiments/xception.py

See `fer_jax.models.xception.Xception`. The study prints 0.95 for "Xception" on FER2013 and shows
this network's figure; the split goes unsaid.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "xception"
    config.model.name = "xception"
    config.model.dropout = 0.5
    config.train.epochs = 30
    config.train.patience = 5
    return config
