"""What each ingredient of `experiments/compact.py` is worth, judged on valid: test stays closed.

Each run takes one ingredient away from the recipe, or adds or changes one. Runs have 6 epochs, a
seventh of the recipe's own, and multiply in bfloat16, so that two cores can do them all. Short runs
favour what fits fast over what generalises (augmentation, mixed images), so what they say of those
is to be read with care; runs of 3, 6 and 12 epochs are to show how accuracy grows with length.

    uv run launch.py --mode=study --study=experiments/compact_ablation.py
"""

import runpy
from pathlib import Path

from fer_jax.study.design import Study

MUON = {
    "train.optimizer": "muon",
    "train.learning_rate": 0.02,
    "train.momentum": 0.95,
    "train.bias_rate": 0.1,
}
STRONG = {  # augmentation as in `experiments/record.py`
    "augment.shift": 0.2,
    "augment.zoom": 0.0,
    "augment.crop": 0.2,
    "augment.brightness": 0.5,
    "augment.contrast": 0.5,
    "augment.erase": 0.5,
}


def get_config():
    """Returns the study's base; every run is this but for what its name says."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "compact_ablation"
    config.model.dtype = "bfloat16"
    config.train.epochs = 6
    config.train.warmup_epochs = 1.0
    config.eval.views = "none"
    config.eval.open_test = False
    config.eval.train_predictions = False
    return config


def get_study():
    """Returns what is varied."""
    return Study(
        base=get_config(),
        one_at_a_time={
            "train.epochs": (6, 3, 12),
            "data.drop_contradicting": (True, False),
            "train.label_smoothing": (0.1, 0.0),
            "train.ema_decay": (0.998, 0.0),
            "train.sam_radius": (0.0, 0.05),
            "flips": {
                "alternate": {},
                "random": {"augment.alternate_flip": False, "augment.flip": True},
                "none": {"augment.alternate_flip": False},
            },
            "augmentation": {
                "light": {},
                "no_geometry": {"augment.shift": 0.0, "augment.rotate": 0.0, "augment.zoom": 0.0},
                "crop": {"augment.zoom": 0.0, "augment.crop": 0.3},
                "no_tone": {"augment.brightness": 0.0, "augment.contrast": 0.0},
                "no_erasing": {"augment.erase": 0.0},
                "strong": STRONG,
            },
            "mixing": {
                "none": {},
                "mixup": {"train.mixup": 0.2},
                "cutmix": {"train.cutmix": 1.0},
            },
            "optimizer": {
                "sgd": {},
                "sgd+fast_biases": {"train.bias_rate": 64.0},
                "adam": {"train.optimizer": "adam", "train.learning_rate": 2e-3},
                "muon": MUON,
            },
            "train.schedule": ("cosine", "linear"),
            "network": {
                "plain": {},
                "residual": {"model.residual": True},
                "squeeze_excitation": {"model.squeeze_excitation": True},
                "blur_pool": {"model.blur_pool": True},
                "dirac_init": {"model.dirac_init": True},
            },
        },
        seeds=2,
    )
