"""How far Muon takes Compact, judged on valid: test stays closed.

In the ablation (`experiments/compact_ablation.py`) Muon is what gains most in six epochs. Here it
trains for 16, two fifths of the recipe's length, with the recipe's weight decay, which is as good
as none at Muon's rate (decay is decoupled: a step takes away rate times decay of a kernel), and
with as much as SGD with a coupled decay of 5e-4 has in published recipes. With the latter it goes
on to 30, where the light augmentation would let it learn labels by heart: with the strong one, and
taught by the recipe's five seeds, this time as they are (temperature 1).

    uv run launch.py --mode=study --study=experiments/compact_muon.py
"""

import runpy
from pathlib import Path

from fer_jax.study.design import Study

DECAY = 0.02
LONGER = {"train.epochs": (30,), "train.weight_decay": (DECAY,)}

_SEED = "results/runs/nvidia_h100/compact_seed{}.json"  # with what it says about train
TAUGHT = {
    "train.teachers": tuple(_SEED.format(seed) for seed in range(5)),
    "train.distill_weight": 0.7,
    "train.temperature": 1.0,
}


def get_config():
    """Returns the study's base: the ablation's with Muon, longer and in float32."""
    ablation = _ablation()
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
        one_at_a_time={
            "train.weight_decay": (5e-4, DECAY),
            "augmentation": {"light": {}},
            "teaching": {"none": {}},
        },
        grids=(
            {**LONGER, "augmentation": {"strong": _ablation()["STRONG"]}},
            {**LONGER, "teaching": {"ensemble": TAUGHT}},
        ),
        seeds=1,
    )


def _ablation():
    return runpy.run_path(str(Path(__file__).with_name("compact_ablation.py")))
