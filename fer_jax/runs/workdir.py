"""A run's folder: its lock, its log and the files in it."""

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_jax import seal
from fer_jax.errors import WorkdirError, reason

log = logging.getLogger("fer_jax")

ROOT = Path("checkpoints")  # where runs land unless told otherwise


def default_workdir(experiment: str, seed: int) -> Path:
    """Returns the folder of an experiment's run with a seed."""
    return ROOT / f"{experiment}_seed{seed}"


def numbered(name: str) -> Iterator[str]:
    """Yields a name, then the same with _2, _3 and so on, to choose one that is free."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run's folder, created if missing, for one process; the lock ends with the process.

    Where the file system knows no locks, a line says so and nothing is held.

    Raises:
      WorkdirError: if another process holds it, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise unwritable(workdir, error) from error
    with lock:
        try:
            lock_file(lock.fileno())
        except BlockingIOError as error:
            raise WorkdirError(
                f"another run is using {workdir}; wait for it, or give this one a folder of "
                "its own with --workdir=PATH"
            ) from error
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see to it that no other run uses it",
                *(workdir, error.strerror),
            )
        yield


def lock_file(descriptor: int) -> None:
    """Locks an open file for this process, until it is closed, or raises at once.

    Raises:
      BlockingIOError: if another process holds it.
      OSError: if it cannot be locked, as on a file system that knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # how some systems say the same
        raise BlockingIOError(error.errno, error.strerror) from error


def unwritable(path: Path, error: OSError, needed: int | None = None) -> WorkdirError:
    """Returns the error to raise for a path that could not be written.

    Args:
      path: what was to be written.
      error: why it was not.
      needed: bytes that were to be written, if known.
    """
    why, advice = reason(error), "choose another folder with --workdir=PATH"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"make room, or {advice}"
        sizes = [f"{needed:,} bytes are needed"] if needed is not None else []
        with contextlib.suppress(OSError):
            sizes.append(f"{shutil.disk_usage(path.parent).free:,} are free")
        why += f" ({', '.join(sizes)})" if sizes else ""
    return WorkdirError(f"cannot write {path}: {why}; {advice}")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as :func:`write_text` writes text.

    Raises:
      WorkdirError: if it cannot be written.
      ValueError: for NaN or infinity, which JSON does not have.
    """
    write_text(path, to_json(value) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON as :func:`write_json` does, with a hash of it that :func:`read_json` checks."""
    write_json(path, seal.add(value))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all: to a temporary file beside `path`, then renamed.

    Args:
      path: whose folder is created if missing.
      text: with newlines as they shall be in the file.

    Raises:
      WorkdirError: if it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file as :func:`write_text` does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise unwritable(path, error, len(data)) from error


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
        """Opens the log and cuts it back to `history`, the rows that the restored state knows.

        Raises:
          WorkdirError: if it cannot be written.
        """
        self._path = workdir / "log.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in history))
        self._events = _Events(workdir / "tensorboard", history[-1]["epoch"] if history else 0)

    def add(self, row: dict[str, Any]) -> None:
        """Appends an epoch's row; numbers under keys with a `/` become TensorBoard scalars.

        Raises:
          WorkdirError: if it cannot be written.
        """
        line = json.dumps(row) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise unwritable(self._path, error, len(line)) from error
        self._events.add(row)

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class _Events:
    """TensorBoard's event file; the first that cannot be written is the last, and is said so.

    tensorboardX's `SummaryWriter` writes in a thread, whose errors nobody can catch.
    """

    def __init__(self, folder: Path, epochs: int):
        """Opens an event file.

        Args:
          folder: TensorBoard's.
          epochs: how many are known; later ones of an earlier session are hidden.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._event: Any = getattr(event_pb2, "Event")  # noqa: B009 - made by protobuf at run time
        session: Any = getattr(event_pb2, "SessionLog")  # noqa: B009
        self._folder = folder
        self._writer: EventsWriter | None = None
        with self._or_without():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
            if epochs:
                start = session(status=session.START)
                self._writer.write_event(self._event(step=epochs + 1, session_log=start))
            self._writer.flush()

    def add(self, row: dict[str, Any]) -> None:
        from tensorboardX.summary import scalar

        if self._writer is None:
            return
        with self._or_without():
            for name, value in row.items():
                if "/" in name and isinstance(value, int | float):
                    point = {"step": row["epoch"], "summary": scalar(name, value)}
                    self._writer.write_event(self._event(wall_time=time.time(), **point))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._or_without():
                self._writer.close()

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            if writer is not None:
                # Its own `close` syncs first, and leaves the file open where that fails.
                with contextlib.suppress(OSError):
                    writer._py_recordio_writer.close()
            log.warning("%s; the run goes on without TensorBoard", unwritable(self._folder, error))


def read_json(path: Path) -> Any | None:
    """Returns what a JSON file holds, None if it is not there.

    Raises:
      WorkdirError: if it cannot be read, is not JSON, or is not what was written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorkdirError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkdirError(f"{path} is not JSON ({error}); move it away to go on") from error
    if seal.is_broken(found):
        raise WorkdirError(f"{path} is damaged: it is not what was written; move it away to go on")
    return found
