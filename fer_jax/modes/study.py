"""Train --experiments, or what --study declares, skipping what has a record in results/."""

from pathlib import Path
from typing import Any

from absl import flags

from fer_jax.errors import ConfigError

_EXPERIMENTS = flags.DEFINE_list(
    "experiments", [], "Of --mode=study: names of files in experiments/, separated by commas."
)
_STUDY = flags.DEFINE_string(
    "study", None, "Of --mode=study: a study file, such as experiments/factors.py."
)
_SEEDS = flags.DEFINE_integer(
    "seeds",
    None,
    "Of --mode=study: runs of each configuration, by default 1 or what the study file declares.",
    1,
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Of --mode=study: list the runs, and run none.")
_SHARD = flags.DEFINE_string(
    "shard", "0/1", "Of --mode=study: i/n, the part of the runs that this machine takes."
)
_OVERRIDES = flags.DEFINE_multi_string(
    "override",
    [],
    "Of --mode=study: a field of every run, such as train.epochs=3; repeatable.",
)


def run(config: Any, workdir: Path | None) -> int:
    """Plans the runs and trains each in a process of its own; 1 if one failed.

    Experiments and study files have configurations and folders of their own: `config` and
    `workdir` are not read.
    """
    if bool(_EXPERIMENTS.value) == bool(_STUDY.value):
        raise ConfigError("--mode=study needs --experiments=NAME,NAME,... or --study=FILE")
    import jax

    from fer_jax.study import execute, plan

    # This process only plans: the accelerator and its memory are the runs'.
    jax.config.update("jax_platforms", "cpu")
    if _STUDY.value:
        file = Path(_STUDY.value).expanduser()
        runs = plan.plan_study(file, _SEEDS.value, _SHARD.value, _OVERRIDES.value)
    else:
        runs = plan.plan(_EXPERIMENTS.value, _SEEDS.value or 1, _SHARD.value, _OVERRIDES.value)
    if _DRY_RUN.value:
        plan.show(runs)
        return 0
    return execute.execute(runs)
