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
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below ends in silence

from absl import app, flags
from ml_collections import config_flags

from fer_jax.config import check_arguments
from fer_jax.errors import ConfigError
from fer_jax.modes import MODES, WITHOUT_EXPERIMENT, status
from fer_jax.runs import stop

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
    list(MODES),
    " ".join(f"{name}: {' '.join(str(mode.__doc__).split())}" for name, mode in MODES.items()),
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, by default checkpoints/<experiment>_seed<seed>; of --mode=benchmark the "
    "records', by default results; of --mode=report the illustrated page's.",
)
for _mode in MODES.values():
    flags.adopt_module_key_flags(_mode)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it ends in one line that says what is allowed."""
    try:
        check_arguments(argv[1:])
        rest = flags.FLAGS(argv)
        if _MODE.value not in WITHOUT_EXPERIMENT and not flags.FLAGS["config"].present:
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
    workdir = Path(_WORKDIR.value).expanduser() if _WORKDIR.value else None
    sys.exit(status(lambda: MODES[_MODE.value].run(_CONFIG.value, workdir)))


if __name__ == "__main__":
    stop.end_at_once()
    app.run(main, flags_parser=_parse_flags)
