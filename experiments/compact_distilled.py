"""The small network again, taught by five seeds of itself (Furlanello et al. 2018).

    uv run launch.py --mode=study --experiments=compact --seeds=5
    uv run launch.py --config=experiments/compact_distilled.py

Teachers and student are fitted on train only. The teachers under-fit it, so that what they say
about it is more than its labels; where they do not, teach with `config.train.fold`.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("compact.py")))["get_config"]()
    config.experiment = "compact_distilled"
    config.train.teachers = tuple(f"checkpoints/compact_seed{seed}" for seed in range(5))
    config.train.distill_weight = 0.7
    config.train.temperature = 2.0
    return config
