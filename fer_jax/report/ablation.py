"""What the ablation of Compact's recipe says: its ingredients, and its length."""

import itertools
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fer_jax.report import factors, markdown, records
from fer_jax.report.records import Record
from fer_jax.study.analysis import Analysis, Change
from fer_jax.study.design import label_of
from fer_jax.study.effects import Frame
from fer_jax.study.table import RUNNING, one_at_a_time
from fer_jax.study.table import factors as factors_of

VALID, _VALID_LOSS = "valid/accuracy", "valid/loss"
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
    return factors.analysed(frame, "The ablation", BLOCKS, lambda analysis: _said(analysis, final))


def _said(analysis: Analysis, final: Sequence[Record]) -> dict[str, str]:
    changes = [change for change in analysis.against_base() if change.factor != _LENGTH]
    changes.sort(key=lambda change: -change.effects[VALID].estimate)
    return {
        "ablation-design": factors.design(analysis.frame),
        "ablation-effects": factors.effects_table(
            analysis, "Instead", [(_title(change), change.effects) for change in changes]
        ),
        "ablation-words": words(analysis, changes),
        "ablation-length": length(analysis.frame, final),
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
        f"{_listed(undecided)}. Beside what a seed shifts all runs by, a single run deviates by "
        f"{deviation:.2f} points on valid ({degrees_of_freedom} degrees of freedom); each interval "
        "stands alone, so of twenty changes without any effect one would be bold."
    )


class _OfLength(NamedTuple):
    """Runs of one length: the accuracy of each on valid, and while it trained."""

    epochs: int
    valid: list[float]
    running: list[float]


def length(frame: Frame, final: Sequence[Record]) -> str:
    """Returns how accuracy grows with the number of epochs, and what a doubling brings."""
    rows = [
        _OfLength(int(epochs), list(of[VALID]), list(of[RUNNING]))
        for epochs, of in one_at_a_time(frame, _LENGTH).groupby(_LENGTH)
    ]
    # Runs of the study and the recipe's own are not of one kind: at one length they are not mixed.
    if final and _whole(final).epochs not in {row.epochs for row in rows}:
        rows = sorted([*rows, _whole(final)], key=lambda row: row.epochs)
    gains = [_per_doubling(a, b) for a, b in itertools.pairwise(rows)]
    written = [[records.MISSING] * 2, *([f"{x:+.1f} points" for x in gain] for gain in gains)]
    shown = [
        [epochs, records.spread(valid), records.spread(running), len(valid), *gained]
        for (epochs, valid, running), gained in zip(rows, written, strict=True)
    ]
    header = ("Epochs", "valid", "running train", "Seeds", "valid, a doubling", "train, a doubling")
    table = markdown.table(header, shown)
    return f"{table}\n\n{_outlook(rows[-1], gains)}" if gains else table


def muon(frame: Frame, final: Sequence[Record]) -> str:
    """Returns how far Muon comes in fewer epochs, beside the recipe at its whole length.

    Args:
      frame: the runs with Muon, from :func:`fer_jax.study.table.load`; None or empty without any.
      final: records of the recipe.
    """
    if frame is None or frame.empty:
        return f"Longer runs with Muon: {records.NOT_MEASURED}."
    varied = [factor for factor in factors_of(frame) if factor != _LENGTH]
    rows = [
        [
            _named(of.iloc[0], varied),
            int(of["epochs_run"].iloc[0]),
            *(records.spread(list(of[column])) for column in (VALID, _VALID_LOSS, RUNNING)),
            len(of),
        ]
        for _, of in sorted(
            frame.groupby("run", sort=False), key=lambda run: run[1]["epochs_run"].iloc[0]
        )
    ]
    if final:
        epochs, valid, running = _whole(final)
        losses = [one["metrics"]["valid"]["loss"] for one in final]
        spreads = [records.spread(values) for values in (valid, losses, running)]
        rows.append(["SGD, the recipe itself", epochs, *spreads, len(final)])
    header = ("Optimiser", "Epochs", "valid", "valid, loss", "running train", "Seeds")
    return markdown.table(header, rows)


def _named(run: Any, varied: Sequence[str]) -> str:
    levels = (f"{factors.factor_name(factor)} {label_of(run[factor])}" for factor in varied)
    return ", ".join(["Muon", *levels])


def _whole(final: Sequence[Record]) -> _OfLength:
    """Returns what runs of the recipe at its whole length say."""
    return _OfLength(
        final[0]["config"]["train"]["epochs"],
        [one["metrics"]["valid"]["accuracy"] for one in final],
        [one["history"][-1][RUNNING] for one in final],
    )


def _outlook(last: _OfLength, gains: Sequence[tuple[float, float]]) -> str:
    """Says what the next factor of two would bring, as far as the gains so far tell."""
    valid, train = gains[-1]
    said = (
        f"On the way to {last.epochs} epochs a doubling brought {valid:+.1f} points on valid and "
        f"{train:+.1f} on train"
    )
    if len(gains) == 1:
        return f"{said}; one gain alone says nothing of the next."
    if any(after >= before for (before, _), (after, _) in itertools.pairwise(gains)):
        return f"{said}; gains do not shrink steadily, which leaves the next one open."
    return (
        f"{said}, less than the one before. The next, {2 * last.epochs} epochs, would bring less "
        f"again: it would end below {fmean(last.valid) + valid / 100:.3f} on valid."
    )


def _per_doubling(before: _OfLength, after: _OfLength) -> tuple[float, float]:
    """Returns what a doubling of epochs brings on valid and on running train, in points."""
    points = 100 / math.log2(after.epochs / before.epochs)
    valid, running = (
        points * (fmean(late) - fmean(early))
        for early, late in zip(before[1:], after[1:], strict=True)
    )
    return valid, running


def _title(change: Change) -> str:
    return f"{factors.factor_name(change.factor)}: {label_of(change.high)}"


def _listed(titles: Sequence[str]) -> str:
    return ", ".join(titles) or "none"
