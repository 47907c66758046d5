"""The paper's Architecture 03.

Its batch size is not given; 96 is the better of the two that the paper names. The paper prints
accuracy 0.889, loss 0.29, 72 h.

    uv run launch.py --config=experiments/arch03.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch03"
    config.model.name = "arch03"
    config.train.eval_on_train = True  # the paper's figures are compared with and without dropout
    return config
