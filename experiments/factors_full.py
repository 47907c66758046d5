"""Which parameters affect the results: the whole factor study, for a GPU.

Every factor takes all its levels, one at a time around the base; a two-level factorial in all six
tells the interaction of each pair; convolutions and dropout are crossed at all numbers of layers.
93 configurations, five seeds each: 465 runs, not run yet. The learning rate stays at Adam's 1e-3
throughout; it is not rescaled with the batch. `--shard=i/n` splits it over machines.

    uv run --extra cuda12 launch.py --mode=study --study=experiments/factors_full.py --shard=0/4
"""

from fer_jax.config import get_config as default_config
from fer_jax.study.design import Study


def get_config():
    """Returns the study's base; every run is this but for what its name says."""
    config = default_config()
    config.experiment = "factors_full"
    config.model.name = "family"
    config.model.conv_layers = 2
    config.model.hidden_layers = 1
    config.train.epochs = 20
    return config


FLIP = {"augment.flip": True}
FLIP_SHIFT_ROTATE = FLIP | {"augment.shift": 0.1, "augment.rotate": 10.0}


def get_study():
    """Returns what is varied."""
    return Study(
        base=get_config(),
        one_at_a_time={
            "model.conv_layers": (2, 3, 4, 5, 6),
            "model.dropout": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
            "train.batch_size": (16, 32, 96, 256, 512),
            "train.epochs": (5, 10, 20, 40),
            "model.hidden_layers": (0, 1, 2),
            "augment": {"none": {}, "flip": FLIP, "flip+shift+rotate": FLIP_SHIFT_ROTATE},
        },
        grids=(
            {
                "model.conv_layers": (2, 6),
                "model.dropout": (0.0, 0.5),
                "train.batch_size": (16, 512),
                "train.epochs": (5, 40),
                "model.hidden_layers": (0, 2),
                "augment": {"none": {}, "flip+shift+rotate": FLIP_SHIFT_ROTATE},
            },
            {"model.conv_layers": (2, 3, 4, 5, 6), "model.dropout": (0.0, 0.2, 0.5)},
        ),
        seeds=5,
    )
