"""Jindal & Singh 2015: five convolutions and two fully connected layers, as in CaffeNet.

uv run launch.py --config=experiments/jindal.py

See `fer_jax.models.alexnet.CaffeNet`. The study prints 0.535: accuracy on labelled Flickr images,
which are no faces, after pretraining on ImageNet. Chosen: the rate, at which a deep network without
BatchNorm starts well.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "jindal"
    config.model.name = "caffenet"
    config.model.dropout = 0.5
    config.train.learning_rate = 1e-4
    config.train.epochs = 30
    config.train.patience = 5
    return config
