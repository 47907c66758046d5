"""What a run's time went to: named spans of wall and CPU seconds, added up over all sessions."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping


@dataclasses.dataclass
class _Span:
    """A span that is open: when it began, and the seconds that inner spans took of it so far."""

    name: str
    wall: float
    cpu: float
    inner_wall: float = 0.0
    inner_cpu: float = 0.0


class Clock:
    """Adds up seconds by name; what an inner span takes is not the outer one's.

    `total` runs from when the clock is made. Saved with each checkpoint, the seconds go on where a
    run goes on, without what was lost since.
    """

    def __init__(self) -> None:
        """Starts at nothing."""
        self._started = time.perf_counter()
        self._closed: dict[str, float] = {}  # seconds of spans that have ended
        self._open: list[_Span] = []  # from the outermost to the innermost
        self._earlier_s = 0.0  # total of the sessions before this one

    def resume(self, seconds: Mapping[str, float]) -> None:
        """Adds an earlier session's :meth:`seconds`."""
        earlier = dict(seconds)
        self._earlier_s += earlier.pop("total")
        _add(self._closed, earlier)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds what happens inside to `name` and, of all cores together, to `<name>_cpu`."""
        span = _Span(name, time.perf_counter(), time.process_time())
        self._open.append(span)
        try:
            yield
        finally:
            wall, cpu = time.perf_counter(), time.process_time()
            self._open.pop()
            _add(self._closed, _own_seconds(span, wall, cpu))
            if self._open:
                self._open[-1].inner_wall += wall - span.wall
                self._open[-1].inner_cpu += cpu - span.cpu

    def seconds(self) -> dict[str, float]:
        """Returns seconds by name, open spans so far, and `total`: wall time of all sessions."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = dict(self._closed)
        end_wall, end_cpu = wall, cpu
        for span in reversed(self._open):  # an outer span stands still since the inner one began
            _add(found, _own_seconds(span, end_wall, end_cpu))
            end_wall, end_cpu = span.wall, span.cpu
        return found | {"total": self._earlier_s + wall - self._started}


def _own_seconds(span: _Span, wall: float, cpu: float) -> dict[str, float]:
    return {
        span.name: wall - span.wall - span.inner_wall,
        f"{span.name}_cpu": cpu - span.cpu - span.inner_cpu,
    }


def _add(sums: dict[str, float], seconds: Mapping[str, float]) -> None:
    for name, value in seconds.items():
        sums[name] = sums.get(name, 0.0) + value
