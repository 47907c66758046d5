"""Effects of factors on a response, with 95 % confidence intervals: a linear model of many runs.

The model is additive: a mean, one number for each level of each factor other than the base's, and
one for each seed other than the first (seeds are blocks: all of a seed's runs share the order of
their images). For an interaction the products of one pair of factors are added. Seeds are not a
random effect: from two or three of them a variance between seeds cannot be told.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from statsmodels.regression.linear_model import OLS

# A pandas.DataFrame; its annotations give a column more types than a checker can use.
Frame = Any
Levels = Mapping[str, Any]  # factor -> level


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference of means and the ends of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1; 0 while the interval holds 0, which decides nothing."""
        return int(self.low > 0) - int(self.high < 0)


class NotSeparable(ValueError):
    """The runs so far do not tell the effects apart."""


class Fit:
    """The model of one response, fitted by ordinary least squares."""

    def __init__(
        self,
        frame: Frame,
        values: Sequence[float] | np.ndarray,
        base: Levels,
        crossed: tuple[str, str] | None = None,
    ):
        """Fits.

        Args:
          frame: a row for each run: a column for each factor in `base`, and `seed`.
          values: the response of each row.
          base: the base's level of each factor.
          crossed: two factors whose interaction is part of the model.

        Raises:
          NotSeparable: if the rows do not determine every level's effect and an error.
        """
        self._base = dict(base)
        self._terms = [
            {factor: level}
            for factor in base
            for level in frame[factor].unique()
            if level != base[factor]
        ]
        if crossed:
            pairs = frame[list(crossed)].drop_duplicates().to_dict("records")
            self._terms += [
                pair for pair in pairs if all(pair[factor] != base[factor] for factor in crossed)
            ]
        seeds = sorted(frame["seed"].unique())[1:]
        rows = [
            [*self._row(levels), *(levels["seed"] == seed for seed in seeds)]
            for levels in frame.to_dict("records")
        ]
        matrix = np.asarray(rows, float)
        if len(matrix) <= matrix.shape[1] or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
            raise NotSeparable(f"{len(matrix)} runs do not determine {matrix.shape[1]} effects")
        self._seeds = len(seeds)
        self._results = OLS(np.asarray(values, float), matrix).fit()

    @property
    def degrees_of_freedom(self) -> int:
        """Those of the error, whose spread is taken to be the same in every configuration."""
        return int(self._results.df_resid)

    @property
    def deviation(self) -> float:
        """The standard deviation of the error, in the response's unit."""
        return float(np.sqrt(self._results.scale))

    def difference(self, before: Levels, after: Levels) -> Effect:
        """Estimates how the response differs between two configurations.

        Args:
          before: levels of some factors; the others' cancel out.
          after: likewise.
        """
        return self._estimate(self._contrast(before, after))

    def interaction(self, first: tuple[str, Any, Any], second: tuple[str, Any, Any]) -> Effect:
        """Estimates how much more the second factor does at one level of the first than at another.

        Args:
          first: a factor and two of its levels.
          second: likewise.
        """
        (a, a_low, a_high), (b, b_low, b_high) = first, second
        at_low, at_high = (
            self._contrast({a: level, b: b_low}, {a: level, b: b_high}) for level in (a_low, a_high)
        )
        return self._estimate(at_high - at_low)

    def _row(self, levels: Levels) -> list[float]:
        full = self._base | dict(levels)
        return [1.0] + [float(all(full[f] == v for f, v in t.items())) for t in self._terms]

    def _contrast(self, before: Levels, after: Levels) -> np.ndarray:
        return np.subtract(
            [*self._row(after), *[0] * self._seeds], [*self._row(before), *[0] * self._seeds]
        )

    def _estimate(self, contrast: np.ndarray) -> Effect:
        test = self._results.t_test(contrast)
        low, high = np.squeeze(test.conf_int(alpha=0.05))
        return Effect(float(np.squeeze(test.effect)), float(low), float(high))
