"""Which checkpoints test was opened for, and what they predicted, in a run's folder.

Test is opened for the checkpoint that valid chose. Predictions are kept before anything is made of
them, so that opening test for the same checkpoint again shows nothing new and counts once.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.runs import workdir as wd

FILE = "test_openings.json"


def find(workdir: Path, variables: str) -> tuple[int, np.ndarray | None]:
    """Looks up what has been predicted for test.

    Args:
      workdir: the run's folder.
      variables: hash of the variables that test is to be opened for.

    Returns:
      How often test has been opened, and the log-probabilities `[n, classes]` float32 that were
      kept for these variables, None if there are none.

    Raises:
      WorkdirError: if the file is not JSON.
    """
    openings = _read(workdir)
    for opening in openings:
        if opening["variables"] == variables:
            flat = np.frombuffer(base64.b64decode(opening["log_probs"]), "<f4")
            return len(openings), flat.astype(np.float32).reshape(opening["shape"])
    return len(openings), None


def count(workdir: Path) -> int:
    """Returns how often test has been opened."""
    return len(_read(workdir))


def keep(workdir: Path, epoch: int, variables: str, log_probs: np.ndarray) -> int:
    """Notes an opening with what was predicted; returns how often test has been opened by now.

    Args:
      workdir: the run's folder.
      epoch: after which the variables were saved, counted from 1.
      variables: their hash.
      log_probs: `[n, classes]` float32.

    Raises:
      WorkdirError: if it cannot be written.
    """
    opening = {
        "epoch": epoch,
        "variables": variables,
        "shape": list(log_probs.shape),
        "log_probs": base64.b64encode(log_probs.astype("<f4").tobytes()).decode(),
    }
    openings = [*_read(workdir), opening]
    wd.write_sealed(workdir / FILE, {"openings": openings})
    return len(openings)


def _read(workdir: Path) -> list[dict[str, Any]]:
    found = wd.read_json(workdir / FILE)
    return found["openings"] if found else []
