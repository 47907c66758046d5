"""Evaluate the best checkpoint of a run on --split."""

from pathlib import Path
from typing import Any

from absl import flags

from fer_jax.labels import SPLITS
from fer_jax.modes.train import start

_SPLIT = flags.DEFINE_enum("split", "valid", SPLITS, "Of --mode=evaluate: what to evaluate on.")


def run(config: Any, workdir: Path | None) -> None:
    """Evaluates, and prints the metrics."""
    folder = start(config, workdir)
    from fer_jax import evaluate
    from fer_jax.machine import distributed
    from fer_jax.runs.record import format_metrics

    found = evaluate.evaluate_best(config, folder, _SPLIT.value)
    if distributed.is_first():
        print(format_metrics({_SPLIT.value: found}))
