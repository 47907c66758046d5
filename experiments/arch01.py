"""The paper's Architecture 01.

Its batch size is not given; 96 is the better of the two that the paper names. It is also the
network of Serengil 2018 (`serengil.py`). The paper prints accuracy 0.77, loss 0.70, 120 h.

    uv run launch.py --config=experiments/arch01.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch01"
    config.model.name = "arch01"
    config.train.epochs = 30
    config.train.eval_on_train = True  # the paper's figures are compared with and without dropout
    return config
