"""What tests share besides fixtures: a tiny network, tiny faces, and how runs are compared."""

import signal
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from fer_jax import models
from fer_jax.data import drawn as faces
from fer_jax.models import layers

ROOT = Path(__file__).parent.parent
COUNTS = {"train": 70, "valid": 21, "test": 23}  # no multiple of any batch used


class Tiny(nn.Module):
    """A network that compiles in no time: a convolution, pooling, dropout, a dense layer."""

    num_classes: int = 7
    dropout: float = 0.2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(layers.Conv(4, (4, 4), strides=(4, 4), padding="VALID", name="conv1")(images))
        x = layers.MaxPool((2, 2), (2, 2), name="pool1")(x).reshape(images.shape[0], -1)
        x = layers.Dropout(self.dropout, self.axis_name, name="dropout1")(x, train=train)
        return layers.Dense(self.num_classes, name="logits")(x)


models.MODELS["tiny"] = Tiny


def tiny_examples():
    """Returns split -> (images, labels, ids) of a few drawn faces; two of test stand in train."""
    splits = {}
    for i, (split, count) in enumerate(COUNTS.items()):
        labels = (np.arange(count) % 7).astype(np.uint8)
        images = faces.draw_faces(labels, seed=i)
        splits[split] = (images, labels, np.array([f"{split}_{k}" for k in range(count)], "S"))
    splits["test"][0][:2] = splits["train"][0][:2]
    return splits


def tiny_config(config, data_dir):
    """Returns `config` made small: batch 16, four steps an epoch, two epochs, one device."""
    config.unlock()
    config.experiment = "tiny"
    config.model.name = "tiny"
    config.data.name = "synthetic_faces"
    config.data.data_dir = str(data_dir)
    config.data.pipeline = "resident"  # spares importing TensorFlow
    config.train.batch_size = 16
    config.train.epochs = 2
    config.train.devices = 1
    config.eval.batch_size = 16
    return config.lock()


def arrays_of(folder, step=None):
    """Returns every array of a checkpoint, by default the newest, read with orbax alone."""
    import orbax.checkpoint as ocp

    steps = [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    path = folder / "checkpoints" / str(max(steps) if step is None else step) / "state"
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(path.resolve()))


def flip_bit(checkpoint, every=None):
    """Flips a bit in the middle of a checkpoint's arrays, or one in so many bytes of them."""
    files = [p for p in (checkpoint / "state").rglob("d/*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = np.fromfile(path, np.uint8)
    data[slice(None, None, every) if every else len(data) // 2] ^= 1
    data.tofile(path)


def assert_same(a, b):
    """Asserts that two trees hold the same bits."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance=1e-4):
    """Compares each array's distance with its norm: Adam magnifies rounding of tiny gradients."""
    leaves = jax.tree.leaves_with_path
    for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(x), path


def without_timings(history):
    """Returns the rows of a history without what differs between runs of the same bits."""
    return [{k: v for k, v in row.items() if k != "train_s"} for row in history]


def stop_after(step, signum=signal.SIGTERM):
    """Returns an `on_step` that sends this process a signal after a step."""

    def on_step(state):
        if int(state.step) == step:
            signal.raise_signal(signum)

    return on_step
