"""Trains and evaluates networks that recognise seven emotions in faces.

python launch.py --config=experiments/quickstart.py
python launch.py --config=experiments/arch02_bs96.py --config.train.epochs=3
python launch.py --config=experiments/arch02_bs96.py --mode=summary
python launch.py --config=experiments/arch02_bs96.py --mode=benchmark
python launch.py --mode=study --experiments=arch02_bs96,arch03 --seeds=3
python launch.py --mode=study --study=experiments/factors.py
python launch.py --mode=report
"""

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from fer_jax.errors import ConfigError
from fer_jax.runs import stop

MODES = ("train", "evaluate", "study", "benchmark", "summary", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).resolve().parent / "fer_jax" / "config.py"),
    "Experiment file, such as experiments/arch02_bs96.py; needed to train, evaluate, benchmark and "
    "show a summary.",
    lock_config=True,
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train, or go on, and evaluate the best checkpoint. evaluate: evaluate the best "
    "checkpoint of a run on --split. study: train --experiments, or what --study declares, one "
    "after another; what has a record in results/ is skipped. benchmark: measure training speed on "
    "each kind of device here. summary: show the network's layers. report: make README's tables "
    "and docs/reproduction.* from the records in results; with --config.data.source the same page "
    "with the data set's pictures, in out/reproduction.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, by default checkpoints/<experiment>_seed<seed>; of --mode=benchmark the "
    "records', by default results; of --mode=report the illustrated page's.",
)
_SPLIT = flags.DEFINE_enum(
    "split", "valid", ("train", "valid", "test"), "Of --mode=evaluate: what to evaluate on."
)
_MERGE = flags.DEFINE_list(
    "merge", [], "Of --mode=benchmark: records (benchmark_<device>.json) made on other machines."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Of --mode=benchmark: seeds on each device; 0 only shows and merges.", 0
)
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
_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Training in several processes: host:port of process 0. Slurm and Open MPI need no such flag.",
)
_COUNT = flags.DEFINE_integer("num_processes", None, "Training in several processes: how many.", 1)
_ID = flags.DEFINE_integer("process_id", None, "Training in several processes: this one's.", 0)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it ends in one line that says what is allowed."""
    from fer_jax.config import check_arguments

    try:
        check_arguments(argv[1:])
        rest = flags.FLAGS(argv)
        if _MODE.value not in ("study", "report") and not flags.FLAGS["config"].present:
            raise flags.Error("--config is missing, such as --config=experiments/quickstart.py")
        _CONFIG.value.experiment  # noqa: B018 - a file that cannot be read says so only now
    except (flags.Error, ConfigError) as error:
        message = str(error)
    except (OSError, ImportError, SyntaxError, AttributeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        message = f"cannot read the experiment file: {reason}"
    else:
        return rest
    sys.exit(f"launch.py: {message}\nTry --help, or see experiments/ and fer_jax/config.py")


def main(argv: list[str]) -> None:
    """Does what --mode says; ends with a line and a status other than 0 on an expected error."""
    if len(argv) > 1:
        sys.exit(f"launch.py: unexpected argument {argv[1]!r}; every option is a --flag")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    logging.getLogger("fer_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio", "concurrent.futures"):
        # Tracebacks of orbax's threads; what went wrong is said once, in a line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Imported here so that --help answers at once.
    from fer_jax import cli

    if _MODE.value == "study":
        status = cli.study(
            _EXPERIMENTS.value,
            Path(_STUDY.value).expanduser() if _STUDY.value else None,
            seeds=_SEEDS.value,
            shard=_SHARD.value,
            overrides=_OVERRIDES.value,
            dry_run=_DRY_RUN.value,
        )
        sys.exit(status)
    workdir = Path(_WORKDIR.value).expanduser() if _WORKDIR.value else None
    if _MODE.value == "report":
        given = config_flags.get_override_values(flags.FLAGS["config"])
        pictures = flags.FLAGS["config"].present or given
        sys.exit(cli.report(_CONFIG.value.data if pictures else None, workdir))
    status = cli.run(
        _MODE.value,
        _CONFIG.value,
        workdir,
        split=_SPLIT.value,
        merge=[Path(path).expanduser() for path in _MERGE.value],
        repeats=_REPEATS.value,
        processes=(_ADDRESS.value, _COUNT.value, _ID.value),
    )
    sys.exit(status)


if __name__ == "__main__":
    stop.end_at_once()
    app.run(main, flags_parser=_parse_flags)
