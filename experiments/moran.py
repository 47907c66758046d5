"""Moran 2019: Gudi's network, three convolutions and a fully connected layer of 3072.

uv run launch.py --config=experiments/moran.py

See `fer_jax.models.related.Gudi`; dropout drops 0.7, as the published code does. The study prints
0.65 (0.66 in its text): accuracy on 9,000 validation images of FER2013, after training on 14,524
others, so not on a split of the data set. Chosen: the rate, lower than usual for the large fully
connected layer without BatchNorm.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "moran"
    config.model.name = "gudi"
    config.model.dropout = 0.7
    config.train.learning_rate = 3e-4
    config.train.epochs = 30
    config.train.patience = 5
    return config
