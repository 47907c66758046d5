"""How a process is asked to stop: SIGINT, SIGTERM, SIGUSR1 or SIGHUP, where there are such.

Python runs a signal's handler when the main thread comes back from what it calls, which takes
seconds while a program compiles. A thread that is woken by the signal itself answers at once.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

# Clusters announce the end of a job with SIGTERM or SIGUSR1, a closed terminal with SIGHUP.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signum: int, message: str):
        """Keeps the number of the signal, for the exit status."""
        super().__init__(message)
        self.signum = signum


class _Listener:
    """Calls a function of a signal's number, in a thread, for each signal that asks to stop."""

    def __init__(self, heard: Callable[[int], None], mark: Callable[[int], None] | None = None):
        """Listens from now on.

        Args:
          heard: called in a thread as soon as the signal comes.
          mark: called in the main thread when it comes back to Python.
        """
        self._before: dict[int, Any] = {}
        if os.name == "nt":  # asyncio wants the file descriptor of signals for itself there
            marked = mark

            def mark(signum: int) -> None:
                if marked:
                    marked(signum)
                heard(signum)

        else:
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            threading.Thread(target=self._listen, args=(reader, heard), daemon=True).start()
            self._fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in SIGNALS:
            if signum != signal.SIGINT and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            self._before[signum] = signal.signal(signum, lambda n, _: mark and mark(n))

    @staticmethod
    def _listen(reader: socket.socket, heard: Callable[[int], None]) -> None:
        with reader:
            while numbers := reader.recv(16):
                for signum in numbers:
                    if signum in SIGNALS:
                        heard(signum)

    def close(self) -> None:
        """Restores what listened before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if os.name != "nt":
            signal.set_wakeup_fd(self._fd)
            self._writer.close()


def end_at_once() -> None:
    """Lets a signal end the process in a line until a :class:`StopRequest` listens.

    For the time in which there is nothing to save. What runs then, such as imports and compilers,
    may swallow a KeyboardInterrupt; this ends in any case.
    """
    _kept.append(_Listener(lambda signum: _end(signum, "nothing had to be saved yet")))


_kept: list[_Listener] = []  # for as long as the process runs


def _end(signum: int, why: str) -> None:
    _say(f"Stopped by {signal.Signals(signum).name}: {why}")
    os._exit(128 + signum)


def _say(line: str) -> None:
    """Writes a line to standard error, past whatever the main thread is writing."""
    if sys.stderr is not None:
        os.write(2, f"\n{line}\n".encode())


class StopRequest:
    """Turns the first signal into a flag, and says so at once; a context manager.

    A second Ctrl-C ends the process in a line. Other signals that repeat are passed over: the run
    is saving by then.
    """

    def __init__(self, first: str = "stopping after this step; once more stops at once"):
        """Nothing was asked for yet.

        Args:
          first: what is said at the first signal.
        """
        self.signum: int | None = None
        self._first = first
        self._told = False

    def __enter__(self) -> "StopRequest":
        """Starts listening."""
        self._listener = _Listener(self._heard, self._mark)
        return self

    def __exit__(self, *_) -> None:
        """Restores what listened before."""
        self._listener.close()

    def _mark(self, signum: int) -> None:
        if self.signum is None:
            self.signum = signum

    def _heard(self, signum: int) -> None:
        self._mark(signum)
        if not self._told:
            self._told = True
            _say(f"{signal.Signals(signum).name}: {self._first}")
        elif signum == signal.SIGINT:
            _end(signum, "what was saved last is kept")
