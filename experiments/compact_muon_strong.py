"""The strong small network again, with Muon and strong augmentation.

    uv run launch.py --config=experiments/compact_muon_strong.py

As long as `experiments/compact.py`, with the optimiser and the augmentation that were best on valid
without teachers in `experiments/compact_muon.py`.
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    ablation, muon = _experiment("compact_ablation"), _experiment("compact_muon")
    config = _experiment("compact")["get_config"]()
    config.experiment = "compact_muon_strong"
    config.train.warmup_epochs = 1.0
    config.train.weight_decay = muon["DECAY"]
    config.update_from_flattened_dict(ablation["MUON"] | ablation["STRONG"])
    return config


def _experiment(name):
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
