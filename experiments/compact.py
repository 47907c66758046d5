"""A strong small network: 1.2 million parameters, trained from nothing on a CPU.

    uv run launch.py --config=experiments/compact.py

See `fer_jax.models.compact`. Where over-fitting has not begun, light augmentation and many epochs
pay; averages of the weights and of views of a test image come on top. The record keeps what the
network says about train, so that it can teach (`experiments/compact_distilled.py`).
"""

from fer_jax.config import get_config as default_config


def get_config():
    """Returns the experiment's configuration."""
    config = default_config()
    config.experiment = "compact"
    config.model.name = "compact"
    config.data.drop_contradicting = True
    config.train.batch_size = 128
    config.train.epochs = 40
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.08
    config.train.schedule = "cosine"
    config.train.warmup_epochs = 2.0
    config.train.weight_decay = 5e-4
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.998  # about the last two epochs
    config.augment.alternate_flip = True
    config.augment.shift = 0.1
    config.augment.rotate = 10.0
    config.augment.zoom = 0.1
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.erase = 0.3
    config.eval.views = "shifts"
    config.eval.train_predictions = True
    return config
