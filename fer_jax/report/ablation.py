"""What the ablation of Compact's recipe says: its ingredients, and its length."""

import itertools
import math
import statistics
from collections.abc import Sequence

from fer_jax.report import factors, markdown, records
from fer_jax.report.records import NOT_MEASURED, Record
from fer_jax.study.analysis import Analysis, Change
from fer_jax.study.design import label_of
from fer_jax.study.effects import Frame, NotSeparable
from fer_jax.study.table import RUNNING, one_at_a_time

VALID = "valid/accuracy"
BLOCKS = ("ablation-design", "ablation-effects", "ablation-words", "ablation-length")
_LENGTH = "epochs"  # the factor whose levels are no ingredients


def blocks(frame: Frame, final: Sequence[Record]) -> dict[str, str]:
    """Returns what a document shows of the ablation, block -> Markdown.

    Args:
      frame: its runs, from :func:`fer_jax.study.table.load`; None or empty where there are none.
      final: records of the recipe at its whole length.

    Returns:
      `BLOCKS`; those that need more runs than there are say so.
    """
    if frame is None or frame.empty:
        return dict.fromkeys(BLOCKS, f"The ablation: {NOT_MEASURED}.")
    try:
        analysis = Analysis(frame)
    except NotSeparable as error:
        return dict.fromkeys(BLOCKS, f"Too few runs for intervals yet: {error}.")
    changes = [change for change in analysis.against_base() if change.factor != _LENGTH]
    changes.sort(key=lambda change: -change.effects[VALID].estimate)
    return {
        "ablation-design": factors.design(frame),
        "ablation-effects": factors.effects_table(
            analysis, "Instead", [(_title(change), change.effects) for change in changes]
        ),
        "ablation-words": words(analysis, changes),
        "ablation-length": length(frame, final),
    }


def words(analysis: Analysis, changes: Sequence[Change]) -> str:
    """Says which changes of the recipe valid tells from none, and how fine it can tell."""
    better, undecided, worse = (
        [_title(change) for change in changes if change.effects[VALID].sign == sign]
        for sign in (1, 0, -1)
    )
    deviation, degrees_of_freedom = analysis.error(VALID)
    return (
        f"Better than the recipe: {_listed(better)}. Worse: {_listed(worse)}. Not told from it: "
        f"{_listed(undecided)}. Runs that differ in nothing but chance differ by a deviation of "
        f"{deviation:.2f} points on valid ({degrees_of_freedom} degrees of freedom); each interval "
        "stands alone, so of twenty changes without any effect one would be bold."
    )


def length(frame: Frame, final: Sequence[Record]) -> str:
    """Returns how accuracy grows with the number of epochs, and what a doubling brings."""
    rows = [
        _Point(int(epochs), list(of[VALID]), list(of[RUNNING]))
        for epochs, of in one_at_a_time(frame, _LENGTH).groupby(_LENGTH)
    ]
    if final:
        rows.append(
            _Point(
                final[0]["config"]["train"]["epochs"],
                [one["metrics"]["valid"]["accuracy"] for one in final],
                [one["history"][-1][RUNNING] for one in final],
            )
        )
    gains = [_per_doubling(a, b) for a, b in itertools.pairwise(rows)]
    shown = [
        [
            *(row.epochs, records.spread(row.valid), records.spread(row.running), len(row.valid)),
            *gained,
        ]
        for row, gained in zip(rows, [[records.MISSING] * 2, *map(_signed, gains)], strict=True)
    ]
    header = ("Epochs", "valid", "running train", "Seeds", "valid, a doubling", "train, a doubling")
    table = markdown.table(header, shown)
    return f"{table}\n\n{_outlook(rows[-1], gains)}" if gains else table


def _signed(gained: tuple[float, float]) -> list[str]:
    return [f"{points:+.1f} points" for points in gained]


def _outlook(last: "_Point", gains: Sequence[tuple[float, float]]) -> str:
    """Says what the next factor of two would bring, as far as the gains so far tell."""
    valid, train = gains[-1]
    said = (
        f"On the way to {last.epochs} epochs a doubling brought {valid:+.1f} points on valid and "
        f"{train:+.1f} on train"
    )
    of_valid = [gain for gain, _ in gains]
    if sorted(of_valid, reverse=True) != of_valid:
        return f"{said}; gains do not shrink steadily, which leaves the next one open."
    return (
        f"{said}, less than the one before. The next, {2 * last.epochs} epochs, would bring less "
        f"again: it would end below {last.valid_mean + valid / 100:.3f} on valid."
    )


class _Point:
    """Runs of one length."""

    def __init__(self, epochs: int, valid: list[float], running: list[float]):
        self.epochs, self.valid, self.running = epochs, valid, running
        self.valid_mean = statistics.fmean(valid)
        self.running_mean = statistics.fmean(running)


def _per_doubling(before: _Point, after: _Point) -> tuple[float, float]:
    """Returns what a doubling of epochs brings on valid and on running train, in points."""
    doublings = math.log2(after.epochs / before.epochs) / 100
    gained = after.valid_mean - before.valid_mean, after.running_mean - before.running_mean
    return gained[0] / doublings, gained[1] / doublings


def _title(change: Change) -> str:
    return f"{factors.factor_name(change.factor)}: {label_of(change.high)}"


def _listed(titles: Sequence[str]) -> str:
    return ", ".join(titles) or "none"
