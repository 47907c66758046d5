import importlib.util
from pathlib import Path

import pytest

from fer_jax import config as config_lib
from fer_jax.errors import ConfigError
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
    create_model(config.model)  # traces it and checks what it returns


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("data.name", "fer2014", "fer2013, synthetic_faces"),
        ("data.pipeline", "fast", "auto, stream, resident"),
        ("model.dropout", 1.0, "between 0 and 0.95"),
        ("model.dropout", float("nan"), "between"),
        ("model.dtype", "float16", "float32, bfloat16"),
        ("train.batch_size", 0, "between 1 and"),
        ("train.epochs", 0, "between 1 and"),
        ("experiment", "", "empty; give it a value"),
        ("data.source", "", "empty; give it a value"),
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
    with pytest.raises(ConfigError, match=f"config.{field} is .*{allowed}"):
        config_lib.validate(config)


def changed(**fields):
    config = config_lib.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def test_every_field_has_one_scope_and_no_other_is_named():
    assert set(config_lib.FIELDS) == set(config_lib.flatten(config_lib.get_config()))


def test_only_what_changes_numbers_or_length_makes_another_run():
    before = config_lib.get_config().to_dict()
    same = changed(
        data__source="/other", data__pipeline="stream", train__devices=2, eval__batch_size=16
    )
    assert config_lib.changed_fields(same, before) == {}
    other = changed(seed=1, train__epochs=3, augment__flip=True)
    found = config_lib.changed_fields(other, before)
    assert found == {"seed": (0, 1), "train.epochs": (20, 3), "augment.flip": (False, True)}
    assert config_lib.format_changes(found).startswith("seed: 0 -> 1; train.epochs: 20 -> 3; ")
    assert list(config_lib.changed_fields(other, before, length=False)) == ["seed", "augment.flip"]


def test_a_missing_field_counts_as_its_default_and_an_unknown_one_as_a_change():
    before = config_lib.get_config().to_dict()
    del before["augment"], before["train"]["momentum"]
    assert config_lib.changed_fields(config_lib.get_config(), before) == {}
    assert config_lib.fill_defaults(before)["train.momentum"] == 0.9
    assert config_lib.changed_fields(changed(train__momentum=0.5), before) == {
        "train.momentum": (0.9, 0.5)
    }
    before["augment"] = {"shear": 0.1}
    found = config_lib.changed_fields(config_lib.get_config(), before)
    assert found == {"augment.shear": (0.1, None)}


def test_of_the_run_that_another_starts_from_only_the_name_counts():
    before = {"train": {"start_from": "pcnn_seed0"}}
    now = changed(train__start_from="/somewhere/pcnn_seed0")
    assert config_lib.changed_fields(now, before) == {}
    assert config_lib.changed_fields(changed(train__start_from="/pcnn_seed1"), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.augment.flip=yes"], r"--config.augment.flip is 'yes'; it must be true or f"),
        (["--config.train.epochs=3.5"], r"epochs is '3.5'; it must be a whole number"),
        (["--config.model.conv_layers=two"], r"conv_layers is 'two'; it must be a whole number"),
        (["--config.train.learning_rate=fast"], r"rate is 'fast'; it must be a number"),
        (["--noconfig.augment.flop"], "no field --config.augment.flop; near it: .*augment.flip"),
        (["--config=a.py", "--config=b.py"], r"--config is given 2 times \(a.py, b.py\)"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(arguments, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.check_arguments(arguments)


def test_right_arguments_pass():
    config_lib.check_arguments(
        ["--config=experiments/arch03.py", "--mode=train", "--configs=x", "--config.augment={}"]
    )
    config_lib.check_arguments(["--config.augment.flip", "--noconfig.augment.flip"])
    config_lib.check_arguments(
        ["--config.train.learning_rate=1e-2", "--config.data.source=a b.zip"]
    )
    config_lib.check_arguments(["--config.train.epochs=3", "--config.train.epochs=4"])
    assert config_lib.parse_text("augment.flip", "True") is True
    assert config_lib.parse_text("train.teachers", "runs/a") == ("runs/a",)
    assert config_lib.parse_text("train.teachers", "('runs/a', 'b.json')") == ("runs/a", "b.json")
    assert config_lib.parse_text("train.learning_rate", "1e-2") == 0.01
