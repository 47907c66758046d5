"""You et al. 2015: the PCNN, fine-tuned without the training images that it disagrees with.

    uv run launch.py --config=experiments/pcnn.py
    uv run launch.py --config=experiments/pcnn_progressive.py

goes on from the first run's best checkpoint; see `fer_jax.progressive`. Ten epochs are a third of
the first run's, as in the paper.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "pcnn_progressive"
    config.model.name = "pcnn"
    config.model.dropout = 0.5
    config.train.learning_rate = 3e-4
    config.train.epochs = 10
    config.train.patience = 5
    config.train.start_from = "checkpoints/pcnn_seed0"
    config.train.drop_disagreeing = True
    return config
