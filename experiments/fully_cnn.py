"""Nishchal et al. 2018: the sequential fully-CNN of Arriaga et al. 2017, 642,935 parameters.

uv run launch.py --config=experiments/fully_cnn.py

See `fer_jax.models.related.FullyCNN`. The study prints 0.66: accuracy on FER2013; the split goes
unsaid. The published training code validates on the last fifth of the CSV, which is PublicTest and
PrivateTest together.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "fully_cnn"
    config.model.name = "fully_cnn"
    config.model.dropout = 0.5
    config.train.epochs = 30
    config.train.patience = 5
    return config
