"""A run's folder: its lock, its log and the files in it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_jax.errors import WorkdirError

ROOT = Path("checkpoints")  # where runs land unless told otherwise


def default_workdir(experiment: str, seed: int) -> Path:
    """Returns the folder of an experiment's run with a seed."""
    return ROOT / f"{experiment}_seed{seed}"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run's folder, created if missing, for one process; the lock ends with the process.

    Raises:
      WorkdirError: if another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise WorkdirError(
            f"cannot write in {workdir}: {error.strerror}; choose another with --workdir=PATH"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"another run is using {workdir}; wait for it, or give this one a folder of its "
                "own with --workdir=PATH"
            ) from error
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all: to a temporary file beside `path`, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(to_json(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def to_json(value: Any, indent: int = 1) -> str:
    """Formats JSON, one key a line, short lists of numbers on one line.

    Raises:
      ValueError: for NaN or infinity, which JSON does not have.
    """

    def render(value: Any, depth: int) -> str:
        flat = json.dumps(value, allow_nan=False)
        if not isinstance(value, dict | list) or not value or len(flat) + depth < 100:
            return flat
        if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
            return flat
        pad = " " * (depth + indent)
        if isinstance(value, dict):
            items = [f"{json.dumps(k)}: {render(v, depth + indent)}" for k, v in value.items()]
        else:
            items = [render(v, depth + indent) for v in value]
        open_, close = "{}" if isinstance(value, dict) else "[]"
        body = (",\n" + pad).join(items)
        return f"{open_}\n{pad}{body}\n{' ' * depth}{close}"

    return render(value, 0)


class Log:
    """One JSON line and one TensorBoard point per epoch, in `<workdir>/log.jsonl` and events."""

    def __init__(self, workdir: Path, history: list[dict[str, Any]]):
        """Opens the log and cuts it back to `history`, the rows that the restored state knows."""
        from tensorboardX import SummaryWriter

        self._path = workdir / "log.jsonl"
        self._path.write_text("".join(json.dumps(row) + "\n" for row in history))
        purge = history[-1]["epoch"] + 1 if history else None
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge)

    def add(self, row: dict[str, Any]) -> None:
        """Appends an epoch's row; numbers under keys with a `/` become TensorBoard scalars."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                self._events.add_scalar(name, value, row["epoch"])
        self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def read_json(path: Path) -> Any | None:
    """Returns what a JSON file holds, None if it is not there.

    Raises:
      WorkdirError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WorkdirError(f"{path} is not JSON ({error}); move it away to go on") from error


def count_test_opening(workdir: Path) -> int:
    """Notes that test is about to be evaluated once more; returns how often by now."""
    path = workdir / "test_evaluations.json"
    count = (read_json(path) or 0) + 1
    write_json(path, count)
    return count
