"""How a run is asked to stop: the first SIGINT or SIGTERM lets it save."""

import signal
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signum: int, message: str):
        """Keeps the number of the signal, for the exit status."""
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag; a second one ends the process at once."""

    def __init__(self):
        """Nothing was asked for yet."""
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Starts listening."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        """Restores what listened before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame) -> None:
        self.signum = signum
        signal.signal(signum, self._before[signum])
