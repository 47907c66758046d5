"""The mean of what five seeds of `experiments/compact_muon_strong.py` predict. Nothing is trained.

    uv run launch.py --config=experiments/compact_muon_ensemble.py

Its members are the records of these runs, all there are.
"""

from fer_jax.config import get_config as default_config

_SEED = "results/runs/compact_muon_strong_seed{}.json"


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "compact_muon_ensemble"
    config.model.name = "compact"
    config.ensemble.members = tuple(_SEED.format(seed) for seed in range(5))
    config.eval.views = "shifts"
    return config
