"""What a run's time went to: named spans of wall and CPU seconds, added up over all sessions."""

import contextlib
import time
from collections.abc import Iterator, Mapping


class Clock:
    """Adds up seconds by name; what an inner span takes is not the outer one's.

    `total` runs from when the clock is made, on top of what it is made with. Saved with each
    checkpoint, a clock goes on where a run went on, without what was lost since.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        """Starts from the seconds of earlier sessions, as :meth:`seconds` gave them."""
        self._before = dict(before or {})
        self._spans = {name: value for name, value in self._before.items() if name != "total"}
        self._started = time.perf_counter()
        self._inner = [(0.0, 0.0)]  # wall and CPU seconds spent inside each open span's own spans

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds what happens inside to `name` and, of all cores together, to `<name>_cpu`."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._inner.append((0.0, 0.0))
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            inner_wall, inner_cpu = self._inner.pop()
            outer_wall, outer_cpu = self._inner[-1]
            self._inner[-1] = (outer_wall + wall, outer_cpu + cpu)
            for key, value in ((name, wall - inner_wall), (f"{name}_cpu", cpu - inner_cpu)):
                self._spans[key] = self._spans.get(key, 0.0) + value

    def seconds(self) -> dict[str, float]:
        """Returns seconds by name, and `total`: the wall time of all sessions."""
        session = time.perf_counter() - self._started
        return self._spans | {"total": self._before.get("total", 0.0) + session}
