"""Serengil 2018: the paper's Architecture 01, a public Keras script for FER2013.

uv run launch.py --config=experiments/serengil.py

The network is Architecture 01 itself (1,485,831 parameters), with the script's dropout of 0.2. The
paper prints 0.92: its author's own accuracy on the training images; the same author gives 0.5743 on
PublicTest.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "serengil"
    config.model.name = "arch01"
    config.train.epochs = 30
    config.train.patience = 5
    return config
