"""The study's Architecture 02 at batch 96, the "second representation" of its table 4.

The study prints accuracy 0.76, loss 0.63, 48 h. Here, n = 1: test accuracy 0.535, chosen on valid
after epoch 13 of 20; 7 minutes of training on two cores of an AMD EPYC that had other work to do.
Record: results/runs/arch02_bs96_seed0.json.

    uv run launch.py --config=experiments/arch02_bs96.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "arch02_bs96"
    config.model.name = "arch02"
    config.train.batch_size = 96
    config.train.eval_on_train = True  # the study's figures are compared with and without dropout
    return config
