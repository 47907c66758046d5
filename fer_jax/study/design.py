"""What a factor study varies, and the runs that follow from it.

A study file in `experiments/` is an experiment file, whose `get_config` is the study's base,
with a function `get_study` beside it that returns a :class:`Study`.
"""

import copy
import dataclasses
import functools
import itertools
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.config import Config, check_field, flatten, validate
from fer_jax.errors import ConfigError

# A factor is a field, such as `train.epochs`, with its values; or any other word with named levels,
# each of which sets some fields.
Levels = Sequence[Any] | Mapping[str, Mapping[str, Any]]
Factors = Mapping[str, Levels]


@dataclasses.dataclass(frozen=True)
class Study:
    """A base, what is varied around it, and how often each configuration is run."""

    base: Config  # its `experiment` names the study and the folder of its records
    one_at_a_time: Factors = dataclasses.field(default_factory=dict)  # all else as in the base
    grids: Sequence[Factors] = ()  # every combination of the levels, all else as in the base
    seeds: int = 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration of a study."""

    name: str  # where it differs from the base, such as "conv_layers=4,dropout=0.5", or "base"
    levels: dict[str, str]  # of every factor of the study, such as {"conv_layers": "4", ...}
    changes: dict[str, Any]  # field -> value, where it differs from the base
    config: Config
    cost: float  # grows with the time of a run: epochs times the network's FLOPs


def load_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
      ConfigError: if it is not there, cannot be read, or declares no study.
    """
    if not path.is_file():
        raise ConfigError(f"no study file {path}; see experiments/factors.py for one")
    try:
        declared = runpy.run_path(str(path))
        study = declared["get_study"]() if "get_study" in declared else None
    except Exception as error:  # whatever the file's own code raises
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the study file {path}: {reason}") from error
    if not isinstance(study, Study):
        raise ConfigError(f"{path} declares no study: it needs a get_study() that returns a Study")
    return study


def factor_fields(study: Study) -> set[str]:
    """Returns all fields that any factor of a study sets."""
    parts = (_read(part) for part in (study.one_at_a_time, *study.grids))
    return {field for factors in parts for levels in factors.values() for field in _fields(levels)}


def cells(study: Study) -> list[Cell]:
    """Lists a study's configurations, each once, those that take little time first.

    Raises:
      ConfigError: for a field that is not there, a value that it cannot take, a factor that is
        declared twice, or a study without runs; nothing is run before all are checked.
    """
    if study.seeds < 1:
        raise ConfigError(f"a study of {study.seeds} seeds has no runs; it needs 1 or more")
    single, *grids = [_read(part) for part in (study.one_at_a_time, *study.grids)]
    factors = _join([single, *grids])
    chosen = [{}] + [{name: label} for name, levels in single.items() for label in levels]
    for grid in grids:
        chosen += [
            dict(zip(grid, labels, strict=True)) for labels in itertools.product(*grid.values())
        ]
    found: dict[Any, Cell] = {}
    for levels in chosen:
        cell = _create_cell(study.base, factors, levels)
        found.setdefault(frozenset(cell.changes.items()), cell)
    return sorted(found.values(), key=lambda cell: cell.cost)


# Short name of a factor -> label of a level -> the fields that it sets.
_Read = dict[str, dict[str, dict[str, Any]]]


def _read(declared: Factors) -> _Read:
    """Brings field factors and factors of named levels into one form."""
    factors: _Read = {}
    for key, levels in declared.items():
        if isinstance(levels, Mapping):
            named = [(label, dict(fields)) for label, fields in levels.items()]
        else:
            named = [(label_of(value), {key: value}) for value in levels]
        name = key.split(".")[-1]
        if name in factors:
            raise ConfigError(f"two factors of this study have the short name {name}")
        factors[name] = {}
        for label, fields in named:
            for field in fields:
                check_field(field)
            if set(label) & set("/=,"):
                raise ConfigError(
                    f"factor {key}: a level may not be named {label!r}, with / = or ,"
                )
            _add(factors, name, label, fields)
    return factors


def label_of(value: Any) -> str:
    """Returns how a value is written, in names of runs as in tables and figures."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _add(factors: _Read, name: str, label: str, fields: dict[str, Any]) -> None:
    if factors[name].setdefault(label, fields) != fields:
        raise ConfigError(f"factor {name} has two levels named {label}")


def _join(parts: Sequence[_Read]) -> _Read:
    """Joins the levels that the parts of a study give each factor."""
    factors: _Read = {}
    for part in parts:
        for name, levels in part.items():
            factors.setdefault(name, {})
            for label, fields in levels.items():
                _add(factors, name, label, fields)
    owners: dict[str, str] = {}
    for name, levels in factors.items():
        for field in _fields(levels):
            if owners.setdefault(field, name) != name:
                raise ConfigError(f"factors {owners[field]} and {name} both set {field}")
    return factors


def _fields(levels: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Returns all fields that any level of a factor sets."""
    return {field for fields in levels.values() for field in fields}


def _create_cell(base: Config, factors: _Read, chosen: dict[str, str]) -> Cell:
    before = flatten(base)
    levels = {name: _base_level(name, factors[name], before) for name in factors} | chosen
    config = copy.deepcopy(base)
    for name, label in chosen.items():
        _set_fields(config, factors[name][label])
    now = flatten(config)
    changes = {field: value for field, value in now.items() if value != before[field]}
    different = [
        f"{name}={levels[name]}" for name in factors if _fields(factors[name]) & set(changes)
    ]
    name = ",".join(different) or "base"
    with config.unlocked():
        config.experiment = f"{base.experiment}/{name}"
    cost = config.train.epochs * _flops(*_check(config))
    return Cell(name, levels, changes, config, cost)


def _base_level(name: str, levels: dict[str, dict[str, Any]], base: dict[str, Any]) -> str:
    """Returns the label of the level that changes nothing."""
    for label, fields in levels.items():
        if all(base[field] == value for field, value in fields.items()):
            return label
    if len(fields := _fields(levels)) == 1:
        return label_of(base[fields.pop()])
    raise ConfigError(f"factor {name} needs a level that changes nothing, such as 'none': {{}}")


def _set_fields(config: Config, fields: dict[str, Any]) -> None:
    for field, value in fields.items():
        try:
            config.update_from_flattened_dict({field: value})
        except TypeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"config.{field} cannot be {value!r}: {reason}") from None


def _check(config: Config) -> tuple[tuple[str, Any], ...]:
    """Checks values and network; returns the `model` part in a form that can be remembered."""
    from fer_jax.models import create_model

    validate(config)
    create_model(config.model)
    return tuple(config.model.to_dict().items())


@functools.cache
def _flops(*model: tuple[str, Any]) -> int:
    from ml_collections import ConfigDict

    from fer_jax.models import create_model
    from fer_jax.models.summary import flops

    return flops(create_model(ConfigDict(dict(model))))
