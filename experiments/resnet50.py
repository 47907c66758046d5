"""Gajarla & Gupta 2015: ResNet-50 from scratch at 48x48.

uv run launch.py --config=experiments/resnet50.py

See `fer_jax.models.resnet.ResNet50`. The study prints 0.733: accuracy on Flickr images of five
sentiments, which are no faces, after pretraining on ImageNet.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "resnet50"
    config.model.name = "resnet50"
    config.train.epochs = 30
    config.train.patience = 5
    return config
