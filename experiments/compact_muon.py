"""Whether Muon lets Compact learn in fewer epochs, judged on valid: test stays closed.

In the ablation (`experiments/compact_ablation.py`) Muon is what gains most in six epochs. Here it
trains for 16, two fifths of the recipe's length, with the recipe's weight decay, which is as good
as none at Muon's rate (decay is decoupled: a step takes away rate times decay of a kernel), and
with as much as SGD with a coupled decay of 5e-4 has in published recipes.

    uv run launch.py --mode=study --study=experiments/compact_muon.py
"""

import runpy
from pathlib import Path

from fer_jax.study.design import Study


def get_config():
    """Returns the study's base."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "compact_muon"
    config.train.epochs = 16
    config.train.warmup_epochs = 1.0
    config.train.optimizer = "muon"
    config.train.learning_rate = 0.02
    config.train.momentum = 0.95
    config.train.bias_rate = 0.1
    config.eval.views = "none"
    config.eval.open_test = False
    config.eval.train_predictions = False
    return config


def get_study():
    """Returns what is varied."""
    return Study(
        base=get_config(),
        one_at_a_time={"train.weight_decay": (5e-4, 0.02)},
        seeds=1,
    )
