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
    """Returns the study's base: the ablation's with Muon, longer and in float32."""
    ablation = runpy.run_path(str(Path(__file__).with_name("compact_ablation.py")))
    config = ablation["get_config"]()
    config.experiment = "compact_muon"
    config.model.dtype = "float32"
    config.train.epochs = 16
    config.update_from_flattened_dict(ablation["MUON"])
    return config


def get_study():
    """Returns what is varied."""
    return Study(
        base=get_config(),
        one_at_a_time={"train.weight_decay": (5e-4, 0.02)},
        seeds=1,
    )
