"""Every configuration field once, with its unit and where its value comes from.

An experiment file calls :func:`get_config`, changes a few fields and returns the result; on the
command line every field can be overridden, for example ``--config.train.epochs=3``.
:data:`FIELDS` says of each field which values it takes and what changes with it.

What the paper leaves open is chosen here, once:

* **Optimiser and rate**: Adam at 1e-3, the defaults of the Keras the paper used. With He-normal
  weights and pixels divided by 255 they lead Architecture 02's running training curve through the
  paper's two (accuracy, loss) pairs, so they are a fair guess at what was done.
* **Epochs**: 20 unless an experiment says otherwise. Architecture 02's accuracy on valid has
  levelled off by then, and its running training accuracy has passed the paper's figures.
* **Batch size of Architectures 01 and 03**: 96, the better of the two the paper names.
"""

import dataclasses
import difflib
import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict
from ml_collections.config_flags.tuple_parser import TupleParser

from fer_jax.errors import ConfigError

# A ConfigDict gives every field the type of all fields, which no checker can use.
Config = Any

PIPELINES = ("auto", "stream", "resident")
OPTIMIZERS = ("adam", "sgd", "muon")
SCHEDULES = ("constant", "cosine", "linear")
CLASS_WEIGHTS = ("none", "balanced")
DTYPES = ("float32", "bfloat16", "auto")
VIEWS = ("none", "flip", "shifts", "ten_crop")  # see fer_jax.tta.views
AVERAGES = ("probabilities", "logits")  # see fer_jax.tta.average
DATASETS = ("fer2013", "synthetic_faces", "folder")


def get_config() -> Config:
    """Returns the default configuration: Architecture 02, batch 96, as the paper describes it."""
    config: Config = ConfigDict()
    config.experiment = "default"  # names the run's folder and its record
    config.seed = 0  # every random number of a run follows from it

    config.data = ConfigDict()
    config.data.name = "fer2013"  # one of DATASETS
    config.data.source = config_dict.placeholder(str)  # archive, folder or CSV; None: look for it
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own, ~/tensorflow_datasets
    config.data.partial = False  # allow counts other than the published ones
    config.data.drop_contradicting = False  # no training images whose copies have another label
    config.data.pipeline = "auto"  # one of PIPELINES; auto: stream on CPU, resident elsewhere

    config.model = ConfigDict()
    config.model.name = "arch02"  # a name that fer_jax.models.MODELS lists
    config.model.dropout = 0.2  # share of units dropped; 0.2 in the paper
    config.model.dtype = "float32"  # one of DTYPES, see fer_jax.precision; parameters stay float32
    config.model.conv_layers = config_dict.placeholder(int)  # only for `family`: 2 to 6
    config.model.hidden_layers = config_dict.placeholder(int)  # only for `family`: 0 to 2
    # Only for `compact`, each off by default; None: the network's own.
    config.model.width = config_dict.placeholder(int)  # channels of its first stage: 16, 32, 48 ...
    config.model.residual = config_dict.placeholder(bool)  # a shortcut in each stage
    config.model.squeeze_excitation = config_dict.placeholder(bool)  # weighs each stage's channels
    config.model.blur_pool = config_dict.placeholder(bool)  # anti-aliased down-sampling
    config.model.dirac_init = config_dict.placeholder(bool)  # convolutions start as copies

    config.train = ConfigDict()
    config.train.batch_size = 96  # images a step, over all devices
    config.train.epochs = 20  # passes over the training split
    config.train.patience = 0  # stop after so many epochs without a better valid accuracy; 0: never
    config.train.optimizer = "adam"  # one of OPTIMIZERS
    config.train.learning_rate = 1e-3
    config.train.schedule = "constant"  # one of SCHEDULES
    config.train.warmup_epochs = 0.0  # of `cosine` and `linear`: epochs of linear growth from 0
    config.train.momentum = 0.9  # of `sgd` and `muon`, Nesterov's
    config.train.bias_rate = 1.0  # factor on the rate of biases and normalisation
    config.train.weight_decay = 0.0  # decoupled, on kernels only
    config.train.label_smoothing = 0.0  # share of the target spread over all classes
    config.train.mixup = 0.0  # alpha of Beta(alpha, alpha); 0: off
    config.train.cutmix = 0.0  # alpha, likewise; with both, each pair of images takes one
    config.train.ema_decay = 0.0  # of averaged weights, which are then what is evaluated; 0: off
    config.train.sam_radius = 0.0  # of sharpness-aware minimisation, two passes a step; 0: off
    config.train.class_weights = "none"  # one of CLASS_WEIGHTS; balanced: n / (classes * count)
    config.train.devices = 0  # devices to shard the batch over; 0: all that divide it and help
    config.train.eval_on_train = False  # dropout-free training metrics each epoch, not just at last

    config.train.start_from = config_dict.placeholder(str)  # a finished run's folder; None: anew
    # Finished runs' folders or records whose predictions are soft targets; see fer_jax.teachers.
    config.train.teachers = ()
    config.train.distill_weight = 0.0  # share of the loss that the soft targets get
    config.train.temperature = 1.0  # of soft targets
    config.train.fold = config_dict.placeholder(str)  # i/k: fit without the i-th of k parts
    config.train.drop_disagreeing = False  # of `start_from`: leave out what its network gets wrong

    config.augment = ConfigDict()
    config.augment.flip = False  # mirror left to right, probability 1/2
    config.augment.alternate_flip = False  # instead: each image mirrored in every other epoch
    config.augment.shift = 0.0  # at most this share of the side, each direction
    config.augment.rotate = 0.0  # at most so many degrees, either way
    config.augment.zoom = 0.0  # scale between 1 - zoom and 1 + zoom
    config.augment.crop = 0.0  # resized crop that leaves out at most this share of the area
    config.augment.brightness = 0.0  # factor between 1 - brightness and 1 + brightness
    config.augment.contrast = 0.0  # factor between 1 - contrast and 1 + contrast
    config.augment.erase = 0.0  # probability of a random rectangle (2 to 20 % of the area)

    config.eval = ConfigDict()
    config.eval.batch_size = 256  # images; results do not depend on it
    config.eval.open_test = True  # False: test is not evaluated at all, as in an ablation
    config.eval.views = "none"  # one of VIEWS; the record then has averages over them as well
    config.eval.average = "probabilities"  # over views and members, one of AVERAGES
    config.eval.train_predictions = False  # the record keeps them for train too, for teaching

    # Finished runs' folders or records: nothing is trained, their predictions are averaged.
    config.ensemble = ConfigDict()
    config.ensemble.members = ()
    return config.lock()


class Scope(enum.StrEnum):
    """What changes with a field."""

    NUMBERS = "numbers"  # what a run computes, or which run it is
    LENGTH = "length"  # how far it goes: see `depends_on_length`
    ROUNDING = "rounding"  # the order of sums: results are equal to rounding, not to the bit
    SPEED = "speed"  # how long it takes, and what else it shows on the way
    PLACE = "place"  # where files lie on this machine


@dataclasses.dataclass(frozen=True)
class Range:
    """A closed interval that a number must lie in."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Field:
    """What changes with a field, and the values it takes."""

    scope: Scope
    allowed: Range | tuple[str, ...] | None = None  # None: any, but no empty text


NUMBERS, LENGTH, ROUNDING, SPEED, PLACE = Scope

# Every field of `get_config`, by its path.
FIELDS: Mapping[str, Field] = {
    "experiment": Field(NUMBERS),
    "seed": Field(NUMBERS, Range(0, 2**31 - 1)),
    "data.name": Field(NUMBERS, DATASETS),
    "data.source": Field(PLACE),
    "data.data_dir": Field(PLACE),
    "data.partial": Field(NUMBERS),
    "data.drop_contradicting": Field(NUMBERS),
    "data.pipeline": Field(SPEED, PIPELINES),
    "model.name": Field(NUMBERS),
    "model.dropout": Field(NUMBERS, Range(0, 0.95)),
    "model.dtype": Field(NUMBERS, DTYPES),
    "model.conv_layers": Field(NUMBERS),
    "model.hidden_layers": Field(NUMBERS),
    "model.width": Field(NUMBERS),
    "model.residual": Field(NUMBERS),
    "model.squeeze_excitation": Field(NUMBERS),
    "model.blur_pool": Field(NUMBERS),
    "model.dirac_init": Field(NUMBERS),
    "train.batch_size": Field(NUMBERS, Range(1, 2**20)),
    "train.epochs": Field(LENGTH, Range(1, 10**6)),
    "train.patience": Field(LENGTH, Range(0, 10**6)),
    "train.optimizer": Field(NUMBERS, OPTIMIZERS),
    "train.learning_rate": Field(NUMBERS, Range(0, 1e3)),
    "train.schedule": Field(NUMBERS, SCHEDULES),
    "train.warmup_epochs": Field(NUMBERS, Range(0, 10**6)),
    "train.momentum": Field(NUMBERS, Range(0, 1)),
    "train.bias_rate": Field(NUMBERS, Range(0, 1e3)),
    "train.weight_decay": Field(NUMBERS, Range(0, 10)),
    "train.label_smoothing": Field(NUMBERS, Range(0, 0.99)),
    "train.mixup": Field(NUMBERS, Range(0, 100)),
    "train.cutmix": Field(NUMBERS, Range(0, 100)),
    "train.ema_decay": Field(NUMBERS, Range(0, 0.999999)),
    "train.sam_radius": Field(NUMBERS, Range(0, 10)),
    "train.class_weights": Field(NUMBERS, CLASS_WEIGHTS),
    "train.devices": Field(ROUNDING, Range(0, 2**16)),
    "train.eval_on_train": Field(SPEED),
    "train.start_from": Field(NUMBERS),  # only the folder's name, not where it lies
    "train.teachers": Field(NUMBERS),  # names only, likewise
    "train.distill_weight": Field(NUMBERS, Range(0, 1)),
    "train.temperature": Field(NUMBERS, Range(0.1, 100)),
    "train.fold": Field(NUMBERS),
    "train.drop_disagreeing": Field(NUMBERS),
    "augment.flip": Field(NUMBERS),
    "augment.alternate_flip": Field(NUMBERS),
    "augment.shift": Field(NUMBERS, Range(0, 1)),
    "augment.rotate": Field(NUMBERS, Range(0, 180)),
    "augment.zoom": Field(NUMBERS, Range(0, 0.9)),
    "augment.crop": Field(NUMBERS, Range(0, 0.9)),
    "augment.brightness": Field(NUMBERS, Range(0, 1)),
    "augment.contrast": Field(NUMBERS, Range(0, 1)),
    "augment.erase": Field(NUMBERS, Range(0, 1)),
    "eval.batch_size": Field(SPEED, Range(1, 2**20)),
    "eval.open_test": Field(NUMBERS),
    "eval.views": Field(NUMBERS, VIEWS),
    "eval.average": Field(NUMBERS, AVERAGES),
    "eval.train_predictions": Field(NUMBERS),
    "ensemble.members": Field(NUMBERS),  # names only, as of `train.teachers`
}


# Fields that name other runs by their paths. Of these only the last part matters to a run, and is
# told to others.
OTHER_RUNS = ("train.start_from", "train.teachers", "ensemble.members")


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"train.epochs": 20, ...}`, every field by its path.

    Args:
      config: a configuration, or the nested dictionary that a record keeps of one.
    """

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config.to_dict() if isinstance(config, ConfigDict) else config, ""))


def fill_defaults(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Returns all fields by path; one that an older record does not have counts as its default.

    Args:
      config: the fields of a run or a record, nested or by path.
    """
    return flatten(get_config()) | flatten(config)


def depends_on_length(config: Config | Mapping[str, Any]) -> bool:
    """Returns whether a step's numbers depend on how many epochs there will be."""
    return fill_defaults(config)["train.schedule"] != "constant"


def changed_fields(
    now: Config | Mapping[str, Any], before: Mapping[str, Any], *, length: bool = True
) -> dict[str, tuple[Any, Any]]:
    """Lists the fields that make two configurations two runs: those that change its numbers.

    Args:
      now: a configuration.
      before: an earlier run's, nested or by path. On both sides a missing field counts as its
        default.
      length: whether another length makes another run. A run may go on longer than was asked for
        unless :func:`depends_on_length`.

    Returns:
      Field -> (before, now), in the order of :data:`FIELDS`.
    """
    scopes = {NUMBERS, LENGTH} if length else {NUMBERS}
    old, new = _comparable(before), _comparable(now)
    return {
        path: (old.get(path), new.get(path))
        for path in dict.fromkeys((*FIELDS, *old, *new))
        if (path not in FIELDS or FIELDS[path].scope in scopes) and old.get(path) != new.get(path)
    }


def _comparable(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    fields = fill_defaults(config)
    fields |= {path: without_folders(fields[path]) for path in OTHER_RUNS}
    # JSON knows no tuples.
    return {path: list(v) if isinstance(v, tuple) else v for path, v in fields.items()}


def without_folders(runs: str | Sequence[str] | None) -> str | list[str] | None:
    """Returns other runs by name: the last part of their folders or, less `.json`, records."""
    if runs is None:
        return None
    if isinstance(runs, str):
        return Path(runs).name.removesuffix(".json")
    return [Path(run).name.removesuffix(".json") for run in runs]


def format_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns what :func:`changed_fields` found: `seed: 0 -> 1; train.epochs: 20 -> 3`."""
    return "; ".join(f"{path}: {before} -> {now}" for path, (before, now) in changes.items())


def check_field(path: str, prefix: str = "config.") -> None:
    """Checks that there is such a field.

    Args:
      path: such as `train.epochs`.
      prefix: how fields are written where the path comes from, for the message.

    Raises:
      ConfigError: naming the fields nearest to it.
    """
    if path not in FIELDS:
        near = difflib.get_close_matches(path, FIELDS, 3, 0.4) or FIELDS
        allowed = ", ".join(prefix + field for field in near)
        raise ConfigError(f"no field {prefix}{path}; near it: {allowed}")


def check_arguments(argv: Sequence[str]) -> None:
    """Checks what a command line gives for fields, before anything else reads it.

    Args:
      argv: arguments such as `--config.train.epochs=3`; others are passed over.

    Raises:
      ConfigError: for two experiment files or one that is not there, a field that is not there, or
        a text that its type cannot take, naming the field, the text and what is allowed.
    """
    sections = {path.split(".")[0] for path in FIELDS if "." in path}
    files = []
    for argument in argv:
        found = re.fullmatch(r"--?(?:no)?config(?:\.([\w.]+))?(?:=(.*))?", argument, re.DOTALL)
        if not found or found[1] in sections:
            continue
        path, text = found[1], found[2]
        if path is None:
            files += [text] if text else []
            continue
        check_field(path, "--config.")
        if text is not None:
            parse_text(path, text, "--config.")
    if len(files) > 1:
        raise ConfigError(f"--config is given {len(files)} times ({', '.join(files)}); give one")
    for path in map(Path, files):
        if not path.exists():
            there = sorted(str(other) for other in path.parent.glob("*.py"))
            near = difflib.get_close_matches(str(path), there) or there
            raise ConfigError(
                f"there is no experiment file {path}"
                + (f"; near it: {', '.join(near)}" if near else f", and no other in {path.parent}")
            )


_TUPLE = """a path, in quotes if it holds a comma or a space, or several as ("a", "b")"""
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse_text(path: str, text: str, prefix: str = "config.") -> Any:
    """Returns the value that a text gives a field.

    Args:
      path: a field's.
      text: such as `3`, `1e-3` or `true`.
      prefix: how fields are written where the text comes from, for the message.

    Raises:
      ConfigError: if the field's type cannot take it.
    """
    section, _, name = path.rpartition(".")
    config = get_config()
    kind = (config[section] if section else config).get_type(name)
    if kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is tuple:
            found = TupleParser().parse(text)
            if all(isinstance(path, str) and path for path in found):
                return found
    except (ValueError, SyntaxError, TypeError):
        pass
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: _TUPLE}
    if kind in words:
        raise ConfigError(f"{prefix}{path} is {text!r}; it must be {words[kind]}")
    return text


def validate(config: Config) -> None:
    """Checks every field whose values are known without looking at the data.

    Raises:
      ConfigError: naming the field, its value and the allowed ones.
    """
    for path, value in flatten(config).items():
        check_field(path)
        allowed = FIELDS[path].allowed
        if value == "":
            raise ConfigError(f"config.{path} is empty; give it a value, or leave it out")
        if value is None or allowed is None:
            continue
        if isinstance(allowed, Range):
            if not allowed.low <= value <= allowed.high:  # also refuses NaN
                raise ConfigError(
                    f"config.{path} is {value}; it must lie between {allowed.low} and "
                    f"{allowed.high}"
                )
        elif value not in allowed:
            raise ConfigError(f"config.{path} is {value!r}; it must be one of {', '.join(allowed)}")
    if config.train.drop_disagreeing and config.train.start_from is None:
        raise ConfigError("config.train.drop_disagreeing needs config.train.start_from")
    if config.augment.flip and config.augment.alternate_flip:
        raise ConfigError(
            "config.augment.flip and config.augment.alternate_flip exclude each other; choose one"
        )
    if bool(config.train.teachers) != bool(config.train.distill_weight):
        raise ConfigError(
            f"config.train.distill_weight is {config.train.distill_weight} and config.train."
            f"teachers is {config.train.teachers!r}: give both, or neither"
        )
