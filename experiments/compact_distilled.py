"""The small network again, taught by five seeds of itself (Furlanello et al. 2018).

    uv run launch.py --config=experiments/compact_distilled.py

The student trains with Muon and strong augmentation, and is taught at temperature 1: what helped on
valid in `experiments/compact_muon.py`, where the two ways were tried one by one. Its teachers are
the committed records of Compact, which keep what each seed says about train. Teachers and student
are fitted on train only. The teachers under-fit it, so that what they say about it is more than its
labels; where they do not, teach with `config.train.fold`.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = _experiment("compact_muon_strong")["get_config"]()
    config.experiment = "compact_distilled"
    config.train.epochs = 30
    config.update_from_flattened_dict(_experiment("compact_muon")["TAUGHT"])
    return config


def _experiment(name):
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
