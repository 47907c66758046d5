"""Measure training speed on each kind of device here."""

from pathlib import Path
from typing import Any

from absl import flags

_MERGE = flags.DEFINE_list(
    "merge", [], "Of --mode=benchmark: records (benchmark_<device>.json) made on other machines."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Of --mode=benchmark: seeds on each device; 0 only shows and merges.", 0
)
_CPU = flags.DEFINE_boolean(
    "cpu", True, "Of --mode=benchmark: measure the CPU too where there is an accelerator."
)


def run(config: Any, workdir: Path | None) -> None:
    """Measures into the records' folder; its processes start devices of their own."""
    from fer_jax.bench import table
    from fer_jax.config import validate
    from fer_jax.machine import devices

    devices.setup()
    validate(config)
    merge = [Path(path).expanduser() for path in _MERGE.value]
    table.run(config, workdir or table.RESULTS, merge, _REPEATS.value, _CPU.value)
