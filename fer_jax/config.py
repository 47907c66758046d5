"""Every configuration field once, with its unit and where its value comes from.

An experiment file calls :func:`get_config`, changes a few fields and returns the result; on the
command line every field can be overridden, for example ``--config.train.epochs=3``.

What the study leaves open is chosen here, once:

* **Optimiser and rate**: Adam at 1e-3, the defaults of the Keras the study used. With He-normal
  weights and pixels divided by 255 they lead Architecture 02's running training curve through the
  study's two (accuracy, loss) pairs, so they are a fair guess at what was done.
* **Epochs**: 20 unless an experiment says otherwise. Architecture 02's accuracy on valid has
  levelled off by then, and its running training accuracy has passed the study's figures.
* **Batch size of Architectures 01 and 03**: 96, the better of the two the study names.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

# A ConfigDict gives every field the type of all fields, which no checker can use.
Config = Any

PIPELINES = ("auto", "stream", "resident")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine")
CLASS_WEIGHTS = ("none", "balanced")
DTYPES = ("float32", "bfloat16")
DATASETS = ("fer2013", "synthetic_faces")


def get_config() -> Config:
    """Returns the default configuration: Architecture 02, batch 96, as the study describes it."""
    config: Config = ConfigDict()
    config.experiment = "default"  # names the run's folder and its record
    config.seed = 0  # every random number of a run follows from it

    config.data = ConfigDict()
    config.data.name = "fer2013"  # one of DATASETS
    config.data.source = config_dict.placeholder(str)  # archive, folder or CSV; None: look for it
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own, ~/tensorflow_datasets
    config.data.partial = False  # allow counts other than the published ones
    config.data.pipeline = "auto"  # one of PIPELINES; auto: stream on CPU, resident elsewhere

    config.model = ConfigDict()
    config.model.name = "arch02"  # a name that fer_jax.models.MODELS lists
    config.model.dropout = 0.2  # share of units dropped; 0.2 in the study
    config.model.dtype = "float32"  # of activations, one of DTYPES; parameters stay float32
    config.model.conv_layers = config_dict.placeholder(int)  # only for `family`: 2 to 6
    config.model.hidden_layers = config_dict.placeholder(int)  # only for `family`: 0 to 2

    config.train = ConfigDict()
    config.train.batch_size = 96  # images a step, over all devices
    config.train.epochs = 20  # passes over the training split
    config.train.patience = 0  # stop after so many epochs without a better valid accuracy; 0: never
    config.train.optimizer = "adam"  # one of OPTIMIZERS
    config.train.learning_rate = 1e-3
    config.train.schedule = "constant"  # one of SCHEDULES
    config.train.warmup_epochs = 0.0  # of `cosine`: epochs of linear growth from 0
    config.train.momentum = 0.9  # of `sgd`, Nesterov's
    config.train.weight_decay = 0.0  # decoupled, on kernels only
    config.train.label_smoothing = 0.0  # share of the target spread over all classes
    config.train.class_weights = "none"  # one of CLASS_WEIGHTS; balanced: n / (7 * class count)
    config.train.devices = 0  # devices to shard the batch over; 0: all that divide it and help
    config.train.eval_on_train = False  # dropout-free training metrics each epoch, not just at last

    config.train.start_from = config_dict.placeholder(str)  # a finished run's folder; None: anew
    config.train.drop_disagreeing = False  # of `start_from`: leave out what its network gets wrong

    config.augment = ConfigDict()
    config.augment.flip = False  # mirror left to right, probability 1/2
    config.augment.shift = 0.0  # at most this share of the side, each direction
    config.augment.rotate = 0.0  # at most so many degrees, either way
    config.augment.zoom = 0.0  # scale between 1 - zoom and 1 + zoom
    config.augment.erase = 0.0  # probability of a random rectangle (2 to 20 % of the area)

    config.eval = ConfigDict()
    config.eval.batch_size = 256  # images; results do not depend on it
    return config.lock()


def flatten(config: Config) -> dict[str, Any]:
    """Returns `{"train.epochs": 20, ...}`, every field by its path."""

    def walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config.to_dict(), ""))


def field_names() -> list[str]:
    """Returns the paths of all fields, such as `train.epochs`."""
    return list(flatten(get_config()))


def check_field(path: str, prefix: str = "config.") -> None:
    """Checks that there is such a field.

    Args:
      path: such as `train.epochs`.
      prefix: how fields are written where the path comes from, for the message.

    Raises:
      ValueError: naming the fields nearest to it.
    """
    fields = field_names()
    if path not in fields:
        near = difflib.get_close_matches(path, fields, 3, 0.4) or fields
        allowed = ", ".join(prefix + field for field in near)
        raise ValueError(f"no field {prefix}{path}; near it: {allowed}")


@dataclasses.dataclass(frozen=True)
class _Range:
    """A closed interval a field must lie in."""

    low: float
    high: float


_RULES = {
    "seed": _Range(0, 2**31 - 1),
    "data.name": DATASETS,
    "data.pipeline": PIPELINES,
    "model.dropout": _Range(0, 0.95),
    "model.dtype": DTYPES,
    "train.batch_size": _Range(1, 2**20),
    "train.epochs": _Range(0, 10**6),
    "train.patience": _Range(0, 10**6),
    "train.optimizer": OPTIMIZERS,
    "train.learning_rate": _Range(0, 1e3),
    "train.schedule": SCHEDULES,
    "train.warmup_epochs": _Range(0, 10**6),
    "train.momentum": _Range(0, 1),
    "train.weight_decay": _Range(0, 10),
    "train.label_smoothing": _Range(0, 0.99),
    "train.class_weights": CLASS_WEIGHTS,
    "train.devices": _Range(0, 2**16),
    "augment.shift": _Range(0, 1),
    "augment.rotate": _Range(0, 180),
    "augment.zoom": _Range(0, 0.9),
    "augment.erase": _Range(0, 1),
    "eval.batch_size": _Range(1, 2**20),
}


def validate(config: Config) -> None:
    """Checks every field whose range is known without looking at the data.

    Raises:
      ValueError: naming the field, its value and the allowed ones.
    """
    values = flatten(config)
    for path, rule in _RULES.items():
        value = values[path]
        if isinstance(rule, _Range):
            if not rule.low <= value <= rule.high:  # also refuses NaN
                raise ValueError(
                    f"config.{path} is {value}; it must lie between {rule.low} and {rule.high}"
                )
        elif value not in rule:
            raise ValueError(f"config.{path} is {value!r}; it must be one of {', '.join(rule)}")
    if config.train.drop_disagreeing and config.train.start_from is None:
        raise ValueError("config.train.drop_disagreeing needs config.train.start_from")
