"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows images done, images/s and time left on standard error; a context manager."""

    def __init__(self, images: int):
        """Starts at 0 of `images`, the training images that the run still has to go through."""
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=images, unit=" images", unit_scale=True, disable=not self._terminal, leave=False
        )
        self._total = images
        self._done = 0
        self._origin: int | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> "Progress":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Takes the bar off the terminal."""
        self._bar.close()

    def at(self, images: int) -> None:
        """Tells how many images the run has gone through, counted from the run's first start."""
        if self._origin is None:
            self._origin = images
        self.advance(images - self._origin - self._done)

    def advance(self, images: int) -> None:
        """Tells that so many more images are done."""
        self._done += images
        self._bar.update(images)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Prints a line for an epoch that has ended."""
        wall_s = time.perf_counter() - self._started
        left_s = wall_s / max(self._done, 1) * (self._total - self._done)
        self._bar.write(
            f"epoch {row['epoch']:>3}/{epochs}"
            f"  train (running) loss {row['train_running/loss']:.4f}"
            f" accuracy {row['train_running/accuracy']:.4f}"
            f"  valid loss {row['valid/loss']:.4f} accuracy {row['valid/accuracy']:.4f}"
            f"  {row['train_s']:.1f} s, {_clock(left_s)} left",
            file=sys.stderr,
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
