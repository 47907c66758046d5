"""Runs a plan, one run after another, each in a process of its own, and shows what came out."""

import collections
import dataclasses
import logging
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_jax import seal
from fer_jax.errors import RecordError, WorkdirError
from fer_jax.runs import record, workdir
from fer_jax.runs.stop import SIGNALS, StopRequest
from fer_jax.study.plan import ROOT, Record, Run

log = logging.getLogger("fer_jax")

_GRACE_S = 1.0  # a run that did not hear a signal itself is told after this long


def execute(runs: Sequence[Run]) -> int:
    """Runs what is to do; a run that fails does not keep the others from running.

    Ends with a table of exactly these runs on standard output, and the failed ones by name.

    Args:
      runs: a plan.

    Returns:
      An exit status: 0 if all is done, 1 if runs failed, 128 and the signal's number if
      interrupted.
    """
    runs = list(runs)
    todo = [i for i, run in enumerate(runs) if run.record is None]
    log.info("%d runs, of which %d are done", len(runs), len(runs) - len(todo))
    failed: list[str] = []
    clock = _Clock(sum(runs[i].cost for i in todo))
    with StopRequest("stopping the run under way; once more stops at once") as stop:
        for number, i in enumerate(todo, 1):
            run = runs[i]
            log.info("Run %d of %d: %s%s", number, len(todo), run, clock.left())
            status, reason = _launch(run, stop)
            if status == 0:
                try:
                    runs[i] = dataclasses.replace(run, record=_keep_record(run))
                except WorkdirError as error:
                    status, reason = 1, str(error)
            signum = stop.signum or _signal_of(status)
            if signum:
                log.info("Stopped; the same command goes on from here")
                return 128 + signum
            if status:
                failed.append(f"Failed: {run}: {reason}")
                log.error("%s", failed[-1])
            clock.done(run.cost)
    print(format_table(runs))
    for folder in sorted({run.path.parent for run in runs}):
        print(f"Records: {folder}")
    for line in failed:
        log.error("%s", line)
    return 1 if failed else 0


def _launch(run: Run, stop: StopRequest) -> tuple[int, str]:
    """Runs one run to its end and returns its exit status and the last line of its errors.

    What it writes to standard error is passed on. Ctrl-C it hears itself.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *run.flags],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    last = collections.deque([""], maxlen=1)

    def pass_on() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                sys.stderr.write(line)
                if line.strip():
                    last.append(line.strip())

    reader = threading.Thread(target=pass_on)
    reader.start()
    told = False
    while True:
        try:
            status = process.wait(timeout=_GRACE_S)
            break
        except subprocess.TimeoutExpired:
            if stop.signum and not told:  # it may have come to this process alone
                process.terminate()
                told = True
    reader.join()
    if status < 0:
        return status, f"killed by {signal.Signals(-status).name}"
    return status, last[0].removeprefix("launch.py: ") or f"status {status}"


def _signal_of(status: int) -> int:
    """Returns the signal that asked a run to stop; 0 if none did."""
    return next((s for s in SIGNALS if status in (128 + s, -s)), 0)


def _keep_record(run: Run) -> Record:
    """Copies a finished run's record to where records are kept, whole or not at all.

    Raises:
      WorkdirError: if there is no record to copy, or it cannot be written.
    """
    done = workdir.default_workdir(run.experiment, run.seed) / "results.json"
    found = workdir.read_json(done)
    if found is None:
        raise WorkdirError(f"it ended without a record in {done}")
    if run.levels is not None:
        # What a factor study has no use for makes up most of a record.
        found = {k: v for k, v in found.items() if k not in ("predictions", seal.KEY)}
        found = seal.add({"levels": run.levels} | found)
    _set_aside(run.path, found["history"])
    workdir.write_json(run.path, found)
    return found


def _set_aside(path: Path, history: Sequence[Any]) -> None:
    """Moves a record that is to be replaced to `replaced`, so that its openings stay counted.

    Args:
      path: the record's, which need not be there, in a folder beside `replaced`.
      history: the new record's. A run that went on from the old one has counted its openings.
    """
    try:
        before = record.read(path)
    except RecordError:  # there is none, or it is damaged
        return
    goes_on = before["history"] and history[: len(before["history"])] == before["history"]
    if goes_on or not before["test_evaluations"]:
        return
    folder = path.parent.parent / "replaced"
    names = (folder / f"{name}.json" for name in workdir.numbered(path.stem))
    aside = next(name for name in names if not name.exists())
    try:
        folder.mkdir(exist_ok=True)
        path.rename(aside)
    except OSError as error:
        raise workdir.unwritable(aside, error) from error
    log.info("The record before, which opened test, is kept as %s", aside)


def format_table(runs: Sequence[Run]) -> str:
    """Returns a table of a plan's runs: accuracy, mean ± standard deviation over seeds.

    Accuracies are of the checkpoint that is best on valid; test is shown where all records of a
    row have it.
    """
    rows: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        rows[run.experiment].append(run)
    width = max(map(len, (*rows, "experiment")))
    lines = [f"{'experiment':{width}}  {'done':>6}  {'valid':15}  test"]
    for name, row in rows.items():
        records = [run.record for run in row if run.record]
        splits = [_spread(records, split) for split in ("valid", "test")]
        done = f"{len(records)}/{len(row)}"
        lines.append(f"{name:{width}}  {done:>6}  {splits[0]:15}  {splits[1]}".rstrip())
    return "\n".join(lines)


def _spread(records: Sequence[Record], split: str) -> str:
    found = [record["metrics"].get(split) for record in records]
    if not found or None in found:
        return "-"
    values = [metrics["accuracy"] for metrics in found]
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"


class _Clock:
    """Tells how long the rest of a study takes, judging by what is done."""

    def __init__(self, total: float):
        self._started = time.perf_counter()
        self._total = total
        self._done = 0.0

    def done(self, cost: float) -> None:
        self._done += cost

    def left(self) -> str:
        if not self._done:
            return ""
        wall_s = time.perf_counter() - self._started
        left_s = wall_s / self._done * (self._total - self._done)
        return f", about {left_s / 60:.0f} min left"
