"""The few statistics of a report, as functions of plain arrays and of a run's history."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15  # of confidence; Guo et al. 2017 use as many


def crossing(history: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Returns the first row whose running training accuracy reaches `accuracy`, or None."""
    return next((row for row in history if row["train_running/accuracy"] >= accuracy), None)


def loss_at(history: list[dict[str, Any]], accuracy: float) -> float | None:
    """Returns the running training loss (nats) where its accuracy first reaches `accuracy`.

    Between two epochs loss and accuracy are joined by a straight line. None if the accuracy is
    never reached, or by the first epoch already.
    """
    for before, after in itertools.pairwise(history):
        low, high = (row["train_running/accuracy"] for row in (before, after))
        if low < accuracy <= high:
            share = (accuracy - low) / (high - low)
            losses = [row["train_running/loss"] for row in (before, after)]
            return losses[0] + share * (losses[1] - losses[0])
        if low >= accuracy:
            return None
    return None


def binomial_error(accuracy: float, count: int) -> float:
    """Returns the standard error of an accuracy on `count` images, sqrt(p (1 - p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / count)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of a mean, by Student's t; of two values or more."""
    from scipy.stats import t  # takes a second to import

    error = np.std(values, ddof=1) / math.sqrt(len(values))
    reach = float(t.ppf(0.975, len(values) - 1) * error)
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share, `hits` of `count`.

    Wilson's, without continuity correction: unlike p +- 1.96 standard errors it stays in [0, 1] and
    keeps its level for small counts. Source: Wilson 1927, JASA 22.
    """
    z = 1.959964  # the normal distribution's 97.5 % quantile
    p, spread = hits / count, z * z / count
    centre = p + spread / 2
    half = z * math.sqrt(p * (1 - p) / count + spread / (4 * count))
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


LEAST = 2.0**-24  # the smallest half-precision number above zero, as records have them


class Calibration(NamedTuple):
    """Confidence against accuracy, by bins of confidence; see :func:`calibration`."""

    count: np.ndarray  # `[bins]` int64, images
    confidence: np.ndarray  # `[bins]` float64, their mean confidence; NaN in an empty bin
    accuracy: np.ndarray  # `[bins]` float64, share of them that is right; NaN in an empty bin
    error: float  # expected calibration error, in [0, 1]


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Calibration:
    """Sorts images by the probability of their likeliest class and compares it with the outcome.

    Bin m of M holds the images whose confidence, the largest probability, lies in
    ((m - 1) / M, m / M]. The expected calibration error is the mean over images of the distance
    between accuracy and mean confidence in their bin: sum_m (n_m / n) |accuracy_m - confidence_m|.
    Source: Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks, eq. 3.

    Args:
      labels: `[n]` integers in 0..6.
      probabilities: `[n, 7]` floats that sum to one.
      bins: how many, of equal width.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    safe = np.where(count, count, np.nan)
    means = [np.bincount(bin_of, x, bins) / safe for x in (confidence, right.astype(float))]
    error = np.nansum(count * np.abs(means[1] - means[0])) / len(labels)
    return Calibration(count, means[0], means[1], float(error))


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the temperature that minimises the loss of scaled probabilities.

    A network's logits, divided by it, keep their order; it is above 1 where it is too sure. Source:
    Guo et al. 2017, section 4.2. To be fitted on other images than it is judged on.

    Args:
      labels: `[n]` integers.
      probabilities: `[n, classes]` floats that sum to one; zeros, which halves of numbers round to,
        count as the smallest number above.
    """
    from scipy.optimize import minimize_scalar  # takes half a second to import

    def loss(log_t: float) -> float:
        scaled = scale(probabilities, np.exp(log_t))
        return -float(np.log(scaled[np.arange(len(labels)), labels]).mean())

    found: Any = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the probabilities of logits divided by a temperature, `[n, classes]` float64."""
    logits = np.log(np.maximum(probabilities, LEAST).astype(np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Comparison(NamedTuple):
    """Two networks on the same images; see :func:`compare`."""

    only_first: int  # images that only the first one gets right
    only_second: int
    difference: float  # first accuracy minus second
    interval: tuple[float, float]  # 95 % confidence interval of the difference
    p: float  # of the hypothesis that both are right equally often


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compares two networks by the images on which just one of them is right.

    The p-value is that of McNemar's exact test: where just one is right, either is with probability
    1/2 (McNemar 1947). The interval is Wald's for paired proportions.

    Args:
      first: `[n]` bool, whether the first network is right on each image.
      second: `[n]` bool, of the second, in the same order.

    Raises:
      ValueError: if they are not of the same images.
    """
    if first.shape != second.shape:
        raise ValueError(f"predictions of {len(first)} and of {len(second)} images")
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    disagree = only_first + only_second
    p = min(1.0, 2 * _at_most(min(only_first, only_second), disagree))
    difference = (only_first - only_second) / n
    half = 1.96 * math.sqrt(disagree - (only_first - only_second) ** 2 / n) / n
    interval = (difference - half, difference + half)
    return Comparison(only_first, only_second, difference, interval, p)


def _at_most(hits: int, n: int) -> float:
    """Returns the probability of at most so many heads in n tosses of a fair coin.

    Exact in integers, however large n is; SciPy, which has it too, takes seconds to import.
    """
    ways, term = 0, 1  # the binomial coefficient n over k, for k = 0, 1, ...
    for k in range(hits + 1):
        ways += term
        term = term * (n - k) // (k + 1)
    return ways / 2**n


def holm(p_values: list[float]) -> list[float]:
    """Returns p-values adjusted for their number (Holm 1979): at most 5 % of any false alarm."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.take(p_values, order) * factors), 1)
    return adjusted.tolist()
