"""Fathallah et al. 2017: four convolutions, three max-pools, a fully connected layer.

uv run launch.py --config=experiments/fathallah.py

See `fer_jax.models.related.Fathallah`, which says what had to be chosen: its filter counts are not
published where we could look. The study prints 0.969: accuracy on other data sets of posed faces,
with six classes.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "fathallah"
    config.model.name = "fathallah"
    config.model.dropout = 0.5
    config.train.epochs = 30
    config.train.patience = 5
    return config
