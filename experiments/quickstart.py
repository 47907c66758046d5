"""Architecture 02 on drawn faces: everything runs, and nothing is downloaded.

uv run launch.py --config=experiments/quickstart.py
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "quickstart"
    config.data.name = "synthetic_faces"
    config.data.pipeline = "resident"  # spares importing TensorFlow
    config.train.epochs = 8
    return config
