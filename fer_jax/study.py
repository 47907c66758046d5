"""Many runs one after another, each in a process of its own: what is done is skipped."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fer_jax import workdir

log = logging.getLogger("fer_jax")

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "runs"


def plan(
    experiments: Sequence[str], seeds: int, shard: str, folder: Path = RUNS
) -> list[tuple[str, int]]:
    """Lists the runs of a study that have no record yet.

    Args:
      experiments: names of files in `experiments/`.
      seeds: how many of each, counted from 0.
      shard: `i/n`, this machine's part: every n-th run from the i-th on, counted from 0.
      folder: where records of finished runs lie.

    Returns:
      (experiment, seed), all of one seed before the next, so that every row has a first result
      early.

    Raises:
      ValueError: for an experiment that is not there, or a shard that is none.
    """
    known = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
    for name in experiments:
        if name not in known:
            raise ValueError(f"no experiment {name!r}; there are {', '.join(known)}")
    try:
        index, count = map(int, shard.split("/"))
        if not 0 <= index < count:
            raise ValueError
    except ValueError:
        raise ValueError(f"--shard is {shard!r}; it must be i/n with 0 <= i < n") from None
    runs = [(name, seed) for seed in range(seeds) for name in experiments]
    return [run for run in runs[index::count] if not record_path(*run, folder).exists()]


def record_path(experiment: str, seed: int, folder: Path = RUNS) -> Path:
    """Returns where the record of a finished run is kept."""
    return folder / f"{experiment}_seed{seed}.json"


def run(
    runs: Sequence[tuple[str, int]], overrides: Sequence[str], folder: Path = RUNS
) -> list[tuple[str, int]]:
    """Runs a plan; a run that fails does not keep the others from running.

    Args:
      runs: from :func:`plan`.
      overrides: flags such as `--config.train.epochs=3`, given to every run.
      folder: where records of finished runs go.

    Returns:
      The runs that failed.
    """
    failed = []
    started = time.perf_counter()
    for i, (experiment, seed) in enumerate(runs):
        log.info(
            "Run %d of %d: %s, seed %d%s",
            i + 1,
            len(runs),
            experiment,
            seed,
            _time_left(started, i, len(runs)),
        )
        status = _launch(experiment, seed, overrides)
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            log.info("Stopped; the same command goes on from here")
            return failed
        if status:
            log.error("%s, seed %d failed with status %d", experiment, seed, status)
            failed.append((experiment, seed))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        done = workdir.default_workdir(experiment, seed) / "results.json"
        shutil.copyfile(done, record_path(experiment, seed, folder))
    return failed


def _launch(experiment: str, seed: int, overrides: Sequence[str]) -> int:
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        f"--config={ROOT / 'experiments' / experiment}.py",
        f"--config.seed={seed}",
        *overrides,
    ]
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the run hears Ctrl-C as well: wait until it has saved
            continue


def _time_left(started: float, done: int, total: int) -> str:
    if not done:
        return ""
    left_s = (time.perf_counter() - started) / done * (total - done)
    return f", about {left_s / 60:.0f} min left"
