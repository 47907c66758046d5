"""Giannopoulos et al. 2018: GoogLeNet with its auxiliary heads while training.

uv run launch.py --config=experiments/googlenet.py

See `fer_jax.models.googlenet.GoogLeNet`; the heads' losses count 0.3 each. The study prints 0.87
for it: accuracy on FER2013 in one of three tasks (emotion or none, which emotion, both); which one
goes unsaid, as does the split. Chosen: the rate, at which a deep network without BatchNorm starts
well.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "googlenet"
    config.model.name = "googlenet"
    config.model.dropout = 0.4
    config.train.learning_rate = 3e-4
    config.train.epochs = 30
    config.train.patience = 5
    return config
