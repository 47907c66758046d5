"""Nishchal et al. 2018: the mini-XCEPTION of Arriaga et al. 2017, 58,423 parameters.

uv run launch.py --config=experiments/mini_xception.py

See `fer_jax.models.xception.MiniXception`. The study prints 0.95 for "Xception" without saying
which one, nor the split. The weights that Arriaga published carry 0.66 in their file name: accuracy
on the last fifth of FER2013's CSV, which is PublicTest and PrivateTest together, the checkpoint
chosen on the same images.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "mini_xception"
    config.model.name = "mini_xception"
    config.train.epochs = 30
    config.train.patience = 5
    return config
