"""What a factor study's runs say, as numbers: effects of its factors with their intervals.

Effects on accuracies are in percentage points; effects on time are of its natural logarithm, so
that `exp` of one is a ratio.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fer_jax.study.effects import Effect, Fit, Frame, NotSeparable
from fer_jax.study.table import (
    ACCURACIES,
    TEST,
    Corner,
    base_levels,
    crossed,
    levels,
    one_at_a_time,
    time_column,
)

Effects = dict[str, Effect]  # column of the table -> effect


class Change(NamedTuple):
    """What changes with a factor from one level to another."""

    factor: str
    low: Any
    high: Any
    effects: Effects
    at: tuple[str, Any] | None = None  # another factor, held at a level


class Interaction(NamedTuple):
    """How much more the second factor does at the higher level of the first."""

    first: Corner
    second: Corner
    effects: Effects
    within: list[Change]  # of either factor at both levels of the other


class Analysis:
    """The model of every response, and the effects that it estimates.

    Attributes:
      frame: the table; see :func:`fer_jax.study.table.load`.
      base: the base's level of each factor.
      columns: responses: the accuracies that all runs have (an ablation does not open test), and
        time.
      time: the column of time.
      unit: of `time`.
    """

    def __init__(self, frame: Frame):
        """Fits the models.

        Raises:
          NotSeparable: if the runs do not tell the effects apart.
        """
        if frame["seed"].nunique() < 2:
            raise NotSeparable("all are of one seed")
        self.frame = frame
        self.base = base_levels(frame)
        self.time, self.unit = time_column(frame)
        self.columns = [c for c in ACCURACIES if frame[c].notna().all()] + [self.time]
        self._fits = self._fit(None)

    def _fit(self, pair: tuple[str, str] | None) -> dict[str, Fit]:
        return {
            column: Fit(
                self.frame,
                np.log(self.frame[column]) if column == self.time else 100 * self.frame[column],
                self.base,
                pair,
            )
            for column in self.columns
        }

    def between_ends(self, factor: str) -> Change | None:
        """Returns the change from a factor's lowest to its highest level, None if it has one."""
        if factor not in self.base or len(ends := levels(self.frame, factor)) < 2:
            return None
        before, after = {factor: ends[0]}, {factor: ends[-1]}
        return Change(factor, ends[0], ends[-1], _differences(self._fits, before, after))

    def extremes(self) -> list[Change]:
        """Returns :func:`between_ends` of each varied factor."""
        return [change for factor in self.base if (change := self.between_ends(factor))]

    def against_base(self) -> list[Change]:
        """Returns the change from the base to each other level."""
        return [
            Change(factor, of_base, level, _differences(self._fits, {}, {factor: level}))
            for factor, of_base in self.base.items()
            for level in levels(self.frame, factor)
            if level != of_base
        ]

    def interactions(self) -> list[Interaction]:
        """Returns what the pairs of factors do together that were varied together."""
        found = []
        for first, second in crossed(self.frame):
            fits = self._fit((first[0], second[0]))
            effects = {c: fit.interaction(first, second) for c, fit in fits.items()}
            within = [*_within(fits, first, second), *_within(fits, second, first)]
            found.append(Interaction(first, second, effects, within))
        return found

    def best_on_valid(self, factor: str) -> Any:
        """Returns the level with the best mean valid accuracy, all else as in the base."""
        rows = one_at_a_time(self.frame, factor)
        return rows.groupby(factor)["valid/accuracy"].mean().idxmax()

    def error(self, column: str = TEST) -> tuple[float, int]:
        """Returns the deviation of an accuracy's error, in points, and its degrees of freedom."""
        return self._fits[column].deviation, self._fits[column].degrees_of_freedom

    def binomial_error(self) -> float:
        """Returns the standard error of the base's test accuracy from its images, in points."""
        accuracy = self.frame[TEST][self.frame["run"] == "base"].mean()
        return 100 * math.sqrt(accuracy * (1 - accuracy) / self.test_images())

    def test_images(self) -> int:
        """Returns the number of test images."""
        return int(self.frame["test_images"].iloc[0])


def _differences(fits: dict[str, Fit], before: dict[str, Any], after: dict[str, Any]) -> Effects:
    return {column: fit.difference(before, after) for column, fit in fits.items()}


def _within(fits: dict[str, Fit], varied: Corner, fixed: Corner) -> list[Change]:
    """Returns one factor's change at either level of the other."""
    factor, low, high = varied
    other, *ends = fixed
    return [
        Change(
            factor,
            low,
            high,
            _differences(fits, {factor: low, other: end}, {factor: high, other: end}),
            (other, end),
        )
        for end in ends
    ]
