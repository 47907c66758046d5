import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fer_jax import config as config_lib
from fer_jax.models import create_model

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_is_valid_and_its_network_traces(path):
    config = load(path)
    config_lib.validate(config)
    assert config.is_locked
    assert config.experiment == path.stem
    model = create_model(config.model)
    images = jnp.zeros((2, 48, 48, 1))
    variables = jax.eval_shape(lambda k: model.init(k, images, train=False), jax.random.key(0))
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("data.name", "fer2014", "fer2013, synthetic_faces"),
        ("data.pipeline", "fast", "auto, stream, resident"),
        ("model.dropout", 1.0, "between 0 and 0.95"),
        ("model.dropout", float("nan"), "between"),
        ("model.dtype", "float16", "float32, bfloat16"),
        ("train.batch_size", 0, "between 1 and"),
        ("train.epochs", -1, "between 0 and"),
        ("train.learning_rate", -1e-3, "between 0 and"),
        ("train.optimizer", "rmsprop", "adam, sgd"),
        ("train.label_smoothing", 1.0, "between"),
        ("train.class_weights", "yes", "none, balanced"),
        ("augment.rotate", 400.0, "between 0 and 180"),
        ("seed", -1, "between 0 and"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_allowed_ones(field, value, allowed):
    config = config_lib.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"config.{field} is .*{allowed}"):
        config_lib.validate(config)


def test_field_names_are_paths():
    names = config_lib.field_names()
    assert {"seed", "train.epochs", "data.source"} <= set(names)
    assert not any(name in names for name in ("train", "data"))
