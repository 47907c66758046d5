"""The mean of what five seeds of `experiments/compact.py` predict. Nothing is trained.

    uv run launch.py --config=experiments/compact_ensemble.py

Its members are the records of these runs.
"""

from fer_jax.config import get_config as default_config

_SEED = "results/runs/nvidia_h100/compact_seed{}.json"


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "compact_ensemble"
    config.model.name = "compact"
    config.ensemble.members = tuple(_SEED.format(seed) for seed in range(5))
    config.eval.views = "shifts"
    return config
