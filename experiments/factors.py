"""Which parameters affect the results: the factor study at the size that two CPU cores can do.

Around Architecture 02 at batch 96 (the `family` with two convolutions and one hidden layer) one
factor at a time takes three values or more, and convolutions and dropout are crossed two by two.
16 configurations, two seeds each: 32 runs. The learning rate stays at Adam's 1e-3 throughout; it
is not rescaled with the batch. Epochs are few, so that the whole takes 80 core minutes.

    uv run launch.py --mode=study --study=experiments/factors.py
"""

from fer_jax.config import get_config as default_config
from fer_jax.study.design import Study


def get_config():
    """Returns the study's base; every run is this but for what its name says."""
    config = default_config()
    config.experiment = "factors"
    config.model.name = "family"
    config.model.conv_layers = 2
    config.model.hidden_layers = 1
    config.train.epochs = 10
    return config


def get_study():
    """Returns what is varied."""
    return Study(
        base=get_config(),
        one_at_a_time={
            "model.conv_layers": (2, 3, 4, 6),
            "model.dropout": (0.0, 0.2, 0.5),
            "train.batch_size": (16, 96, 512),
            "train.epochs": (5, 10, 20),
            "model.hidden_layers": (0, 1, 2),
            "augment": {
                "none": {},
                "flip": {"augment.flip": True},
                "flip+shift+rotate": {
                    "augment.flip": True,
                    "augment.shift": 0.1,
                    "augment.rotate": 10.0,
                },
            },
        },
        grids=({"model.conv_layers": (2, 4), "model.dropout": (0.0, 0.5)},),
        seeds=2,
    )
