"""Strictness for every test, eight virtual CPU devices, and a small data set of drawn faces."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import jax
import pytest

# No silent promotion of dtype or rank; pyproject makes warnings errors.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# `nohup` has it ignored, and what a test starts would ignore it too.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Many tests build the same programs: each is compiled once.
_CACHE = tempfile.TemporaryDirectory(prefix="fer_jax_tests_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


from helpers import tiny_config, tiny_examples  # noqa: E402

from fer_jax import config as config_lib  # noqa: E402
from fer_jax.data import arrays, prepare  # noqa: E402
from fer_jax.data.dataset import VERSIONS  # noqa: E402
from fer_jax.machine import environment  # noqa: E402
from fer_jax.ops import build, native  # noqa: E402


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


@pytest.fixture(scope="session")
def clean_environment(tmp_path_factory):
    """An environment for subprocesses: compiled programs are kept apart from the user's."""
    cache = tmp_path_factory.mktemp("cache")
    if native.available():  # spares compiling the library again
        (cache / "compiled").mkdir(mode=0o700)
        shutil.copy2(build.library(environment.cache_folder()), cache / "compiled")
    return os.environ | {"FER_JAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
