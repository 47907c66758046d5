"""The small network taught by those that came before it, students among them.

    uv run launch.py --config=experiments/compact_distilled_twice.py

As `experiments/compact_distilled_light.py`, with more and better teachers: its own three seeds and
a seed of `experiments/compact_muon_strong.py` speak beside Compact's five (a further generation of
born-again networks, Furlanello et al. 2018). Together they have a higher accuracy and a lower loss
on valid than the five alone. Convolutions multiply in bfloat16 where the processor is made for it.
"""

import runpy
from pathlib import Path

_TEACHERS = (
    *(f"results/runs/nvidia_h100/compact_seed{seed}.json" for seed in range(5)),
    *(f"results/runs/compact_distilled_light_seed{seed}.json" for seed in range(3)),
    "results/runs/compact_muon_strong_seed0.json",
)


def get_config():
    """Returns the experiment's configuration."""
    path = Path(__file__).with_name("compact_distilled_light.py")
    config = runpy.run_path(str(path))["get_config"]()
    config.experiment = "compact_distilled_twice"
    config.model.dtype = "auto"
    config.train.teachers = _TEACHERS
    return config
