"""Runs `launch.py` in copies of one process that has imported all of it.

A start then takes a second or two instead of ten. JAX's devices must not have been started in the
process that calls :func:`start`, since their threads do not survive a fork.
"""

import dataclasses
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_HEAVY = (
    *("launch", "fer_jax.modes.train", "fer_jax.train", "fer_jax.bench.table", "fer_jax.models"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboardX.event_file_writer"),
    *("tensorboardX.summary", "orbax.checkpoint"),
)


def preload() -> None:
    """Imports what a run imports; to be called once before :func:`start`."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in _HEAVY:
        importlib.import_module(name)
    import helpers  # noqa: F401 - registers the tiny network


@dataclasses.dataclass
class Run:
    """A run under way or ended."""

    pid: int
    stdout: Path
    stderr: Path
    status: int | None = None  # as subprocess gives it: minus the signal's number if one ended it

    def poll(self) -> int | None:
        """Returns the status, None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def send(self, signum: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait(self, limit_s: float = 300) -> tuple[int, str]:
        """Returns status and standard error at the end; kills it after `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                end += 60
            time.sleep(0.02)
        assert self.status is not None
        return self.status, self.stderr.read_text(encoding="utf-8", errors="replace")


def start(arguments: list[str], before: Callable[[], None] = lambda: None) -> Run:
    """Starts a run.

    Args:
      arguments: of `launch.py`.
      before: is called in the new process first, to change its user, folder or environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="forked_"))
    folder.chmod(0o755)
    out, err = folder / "stdout", folder / "stderr"
    for path in (out, err):
        path.touch()  # there even if the run is killed at once
    pid = os.fork()
    if pid:
        return Run(pid, out, err)
    status = 70
    try:
        for path, descriptor in ((out, 1), (err, 2)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(handle, descriptor)
            os.close(handle)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        status = _launch(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _launch(arguments: list[str]) -> int:
    from absl import app

    import launch
    from fer_jax.runs import stop

    sys.argv = ["launch.py", *arguments]
    stop.end_at_once()
    try:
        app.run(launch.main, flags_parser=launch._parse_flags)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function gives, as JSON knows it, called in a copy of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = {"value": function(*arguments)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as file:
        answer = json.loads(file.read())
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["value"]
