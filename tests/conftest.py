"""Strictness for every test, eight virtual CPU devices, and a small data set of drawn faces."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

# No silent promotion of dtype or rank; pyproject makes warnings errors.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# Many tests build the same programs: each is compiled once.
_CACHE = tempfile.TemporaryDirectory(prefix="fer_jax_tests_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

from flax import linen as nn  # noqa: E402

from fer_jax import config as config_lib  # noqa: E402
from fer_jax import models  # noqa: E402
from fer_jax.data import arrays, prepare  # noqa: E402
from fer_jax.data import drawn as faces  # noqa: E402
from fer_jax.data.dataset import VERSIONS  # noqa: E402
from fer_jax.models import layers  # noqa: E402
from fer_jax.ops import native  # noqa: E402

COUNTS = {"train": 70, "valid": 21, "test": 23}  # no multiple of any batch used


class Tiny(nn.Module):
    """A network that compiles in no time: a convolution, pooling, dropout, a dense layer."""

    num_classes: int = 7
    dropout: float = 0.2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(layers.Conv(4, (4, 4), strides=(4, 4), padding="VALID", name="conv1")(images))
        x = layers.MaxPool((2, 2), (2, 2), name="pool1")(x).reshape(len(images), -1)
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


@pytest.fixture(autouse=True, scope="session")
def library():
    """The C++ library, as `launch.py` loads it when devices start."""
    native.load()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with a prepared, tiny `synthetic_faces`."""
    folder = tmp_path_factory.mktemp("data")
    version = VERSIONS["synthetic_faces"]
    target = folder / "synthetic_faces" / version / "arrays"
    source = {"name": "synthetic_faces", "kind": "synthetic_faces", "sha256": "0" * 64}
    arrays.write_arrays(target, tiny_examples(), source)
    return folder


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


@pytest.fixture
def config(data_dir):
    """A tiny network on the tiny faces."""
    return tiny_config(config_lib.get_config(), data_dir)


@pytest.fixture
def dataset(config):
    """The tiny faces."""
    return prepare.load_dataset(config.data)


@pytest.fixture
def standard_promotion():
    """Allows silent promotion of dtypes: optax's Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def clean_environment(tmp_path):
    """An environment for subprocesses: compiled programs are kept apart from the user's."""
    return os.environ | {"FER_JAX_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
