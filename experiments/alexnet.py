"""Giannopoulos et al. 2018: AlexNet, with a first stride of 2 for 48x48 images.

uv run launch.py --config=experiments/alexnet.py

See `fer_jax.models.alexnet.AlexNet`. The study prints 0.82 for it: accuracy on FER2013 in one of
three tasks (emotion or none, which emotion, both); which one goes unsaid, as does the split.
Chosen: the rate, at which a deep network without BatchNorm starts well.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "alexnet"
    config.model.name = "alexnet"
    config.model.dropout = 0.5
    config.train.learning_rate = 1e-4
    config.train.epochs = 30
    config.train.patience = 5
    return config
