"""You et al. 2015: the PCNN, two convolutions and four fully connected layers.

uv run launch.py --config=experiments/pcnn.py

See `fer_jax.models.related.PCNN`. The study prints 0.781: accuracy on Twitter images of two
sentiments, which are no faces, after training on half a million Flickr images. That training was
progressive: train; drop training images that the network is unsure of, each with probability max(0,
2 - exp(|s1 - s2|)) of its scores of the two classes; fine-tune on the rest, for a third as many
steps. With seven classes the natural s1 and s2 are the probability of the label and the largest
other one, signed, so that an image it contradicts goes for sure. Chosen: the rate.
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "pcnn"
    config.model.name = "pcnn"
    config.model.dropout = 0.5
    config.train.learning_rate = 3e-4
    config.train.epochs = 30
    config.train.patience = 5
    return config
