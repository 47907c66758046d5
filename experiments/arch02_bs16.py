"""The paper's Architecture 02 at batch 16, the "first representation" of its table 4.

The paper prints accuracy 0.718, loss 0.757, 72 h.

    uv run launch.py --config=experiments/arch02_bs16.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch02_bs16"
    config.model.name = "arch02"
    config.train.batch_size = 16
    config.train.eval_on_train = True  # the paper's figures are compared with and without dropout
    return config
