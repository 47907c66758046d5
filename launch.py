"""Trains and evaluates networks that recognise seven emotions in faces.

python launch.py --config=experiments/quickstart.py
python launch.py --config=experiments/arch02_bs96.py --config.train.epochs=3
python launch.py --config=experiments/arch02_bs96.py --mode=summary
"""

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "evaluate", "summary")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, such as experiments/arch02_bs96.py.", lock_config=True
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train, or go on, and evaluate the best checkpoint. evaluate: evaluate the best "
    "checkpoint of a run on --split. summary: show the network's layers.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default checkpoints/<experiment>_seed<seed>."
)
_SPLIT = flags.DEFINE_enum(
    "split", "valid", ("train", "valid", "test"), "Of --mode=evaluate: what to evaluate on."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Does what --mode says; ends with a line and a status other than 0 on an expected error."""
    if len(argv) > 1:
        sys.exit(f"launch.py: unexpected argument {argv[1]!r}; every option is a --flag")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    logging.getLogger("fer_jax").setLevel(logging.INFO)
    # Imported here so that --help answers at once.
    from fer_jax import cli

    workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
    sys.exit(cli.run(_MODE.value, _CONFIG.value, workdir, _SPLIT.value))


if __name__ == "__main__":
    app.run(main)
