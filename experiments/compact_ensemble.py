"""The mean of what five seeds of `experiments/compact.py` predict. Nothing is trained.

uv run launch.py --mode=study --experiments=compact --seeds=5
uv run launch.py --config=experiments/compact_ensemble.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "compact_ensemble"
    config.model.name = "compact"
    config.ensemble.members = tuple(f"checkpoints/compact_seed{seed}" for seed in range(5))
    config.eval.views = "shifts"
    return config
