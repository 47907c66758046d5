"""What a factor study says: tables of effects with their intervals, and text computed from them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.report import markdown as markdown_lib
from fer_jax.report.factors import draw, drawn
from fer_jax.study.design import label_of
from fer_jax.study.effects import Effect, Fit, Frame, NotSeparable
from fer_jax.study.table import (
    ACCURACIES,
    NAMES,
    RUNNING,
    TEST,
    Corner,
    base_levels,
    crossed,
    levels,
    load,
    one_at_a_time,
    time_column,
    write_csv,
)

__all__ = ["draw", "drawn", "load", "markdown", "verdict", "write_csv"]

# The paper's claims that a factor study can test: factor -> the claim.
CLAIMS = {
    "conv_layers": "More convolution layers help",
    "dropout": "More dropout helps",
    "batch_size": "Larger batches help",
    "epochs": "More epochs help",
}


def verdict(training: Effect, test: Effect) -> str:
    """Says what effects on running train and on test accuracy make of a claim that more helps."""
    if test.sign > 0:
        on_training = (
            "; undecided on training data",
            " and on training data",
            ", though on training data the opposite holds",
        )
        return "holds on test data" + on_training[training.sign]
    if training.sign > 0:
        on_test = "the opposite holds" if test.sign < 0 else "it is undecided"
        return f"holds on training data only; on test data {on_test}"
    if test.sign < 0:
        return "does not hold: on test data the opposite holds"
    if training.sign < 0:
        return "undecided on test data; on training data the opposite holds"
    return "undecided"


def markdown(frame: Frame) -> str:
    """Returns tables, and text computed from them; says so where nothing is measured yet."""
    if frame.empty:
        return "The factor study is not measured yet."
    try:
        analysis = _Analysis(frame)
    except NotSeparable as error:
        return f"The factor study has too few runs for intervals yet: {error}.\n\n{_cells(frame)}"
    parts = [_design(frame), *analysis.sections(), _cells(frame), analysis.limits()]
    return "\n\n".join(parts)


def claims(frame: Frame) -> str:
    """Returns a line for each of the paper's claims; says so where nothing is measured yet."""
    try:
        return _Analysis(frame).claims() if not frame.empty else "Not measured yet."
    except NotSeparable as error:
        return f"Too few runs yet: {error}."


class _Analysis:
    """The fits of all responses, and what is written about them."""

    def __init__(self, frame: Frame):
        if frame["seed"].nunique() < 2:
            raise NotSeparable("all are of one seed")
        self.frame = frame
        self.base = base_levels(frame)
        self.time, self.unit = time_column(frame)
        self.columns = [*ACCURACIES, self.time]
        self.fits = {column: self._fit(column) for column in self.columns}
        self.pairs = crossed(frame)

    def _fit(self, column: str, pair: tuple[str, str] | None = None) -> Fit:
        """Accuracies in percentage points; time by its logarithm, so that effects are ratios."""
        values = np.log(self.frame[column]) if column == self.time else 100 * self.frame[column]
        return Fit(self.frame, values, self.base, pair)

    def sections(self) -> list[str]:
        """Returns the claims, the levels and the interactions."""
        return [
            f"#### The claims\n\n{self.claims()}",
            f"#### Lowest to highest level\n\n{self.extremes()}",
            f"#### Each level against the base\n\n{self.against_base()}",
            f"#### Factors varied together\n\n{self.interactions()}",
        ]

    def claims(self) -> str:
        """Returns a line for each of the paper's claims."""
        lines = []
        for factor, claim in CLAIMS.items():
            if factor not in self.base or len(ends := levels(self.frame, factor)) < 2:
                lines.append(f"* **{claim}**: not measured yet.")
                continue
            before, after = {factor: ends[0]}, {factor: ends[-1]}
            training, test = (self.fits[c].difference(before, after) for c in (RUNNING, TEST))
            valid = one_at_a_time(self.frame, factor).groupby(factor)["valid/accuracy"].mean()
            lines.append(
                f"* **{claim}** ({_ends(ends)}): **{verdict(training, test)}**. Running train "
                f"accuracy changes by {_points(training)} points, test accuracy by "
                f"{_points(test)}. All else as in the base, {label_of(valid.idxmax())} is best on "
                "valid."
            )
        return "\n".join([*lines, *self._hidden_layers_and_time()])

    def _hidden_layers_and_time(self) -> list[str]:
        """The study also says that hidden layers cost time."""
        factor = "hidden_layers"
        if factor not in self.base or len(ends := levels(self.frame, factor)) < 2:
            return []
        effect = self.fits[self.time].difference({factor: ends[0]}, {factor: ends[-1]})
        said = {1: "holds", 0: "undecided", -1: "the opposite holds"}[effect.sign]
        return [
            f"* **Hidden fully connected layers cost time** ({_ends(ends)}): **{said}**. "
            f"Training takes {_ratio(effect)} of the {self.unit}."
        ]

    def extremes(self) -> str:
        """Returns a row for each factor: from its lowest to its highest level."""
        rows = []
        for factor in self.base:
            ends = levels(self.frame, factor)
            if len(ends) > 1:
                title = _span((factor, ends[0], ends[-1]))
                rows.append([title, *self._effects({factor: ends[0]}, {factor: ends[-1]})])
        return self._table("Factor", rows)

    def against_base(self) -> str:
        """Returns a row for each level that is not the base's."""
        rows = [
            [f"{NAMES.get(f, f)}: {label_of(level)}", *self._effects({}, {f: level})]
            for f, of_base in self.base.items()
            for level in levels(self.frame, f)
            if level != of_base
        ]
        return self._table("Level", rows)

    def interactions(self) -> str:
        """Returns how much one factor's effect depends on another's level."""
        if not self.pairs:
            return "No two factors were varied together."
        rows, lines = [], []
        for first, second in self.pairs:
            fits = {c: self._fit(c, (first[0], second[0])) for c in self.columns}
            if (first[0], second[0]) == ("conv_layers", "dropout"):
                rows += self._effects_within(first, second, fits)
                rows += self._effects_within(second, first, fits)
            effects = {c: fits[c].interaction(first, second) for c in self.columns}
            title = f"interaction of {_span(first)} with {_span(second)}"
            rows.append([title, *(self._cell(c, effect) for c, effect in effects.items())])
            lines.append(_interaction_line(first[0], second[0], effects[TEST]))
        return "\n".join([self._table("Effect", rows), "", *lines])

    def _effects_within(self, varied: Corner, fixed: Corner, fits: dict[str, Fit]) -> list[Any]:
        """Returns rows of one factor's effect at either level of the other."""
        factor, low, high = varied
        other, *ends = fixed
        return [
            [
                f"{_span(varied)}, at {NAMES.get(other, other)} {label_of(end)}",
                *self._effects({factor: low, other: end}, {factor: high, other: end}, fits),
            ]
            for end in ends
        ]

    def _effects(
        self, before: dict[str, Any], after: dict[str, Any], fits: dict[str, Fit] | None = None
    ) -> list[str]:
        fits = fits or self.fits
        return [self._cell(c, fits[c].difference(before, after)) for c in self.columns]

    def _cell(self, column: str, effect: Effect) -> str:
        text = _ratio(effect) if column == self.time else _points(effect)
        return f"**{text}**" if effect.sign else text

    def _table(self, title: str, rows: list[list[str]]) -> str:
        head = [title, *ACCURACIES.values(), f"time ({self.unit})"]
        return markdown_lib.table(head, rows)

    def limits(self) -> str:
        """Returns what the numbers do not say."""
        fit, frame = self.fits[TEST], self.frame
        accuracy = frame[TEST][frame["run"] == "base"].mean()
        images = int(frame["test_images"].iloc[0])
        binomial = 100 * math.sqrt(accuracy * (1 - accuracy) / images)
        lines = [
            "Accuracies are in percentage points, times as ratios; in brackets the 95 % confidence "
            "interval, bold where it leaves out no change. Intervals come from an additive linear "
            "model with seeds as blocks, fitted by ordinary least squares: effects are averages "
            "over the other factors' levels that were run, and the error, which holds whatever "
            "interactions the model leaves out, "
            f"{fit.deviation:.2f} points on test with {fit.degrees_of_freedom} degrees of freedom, "
            "is taken to be of one size in all configurations. An interaction is estimated with "
            "the products of its two factors added. Each interval stands alone: of twenty without "
            "any effect one would be bold.",
            f"With {frame['seed'].nunique()} seeds an interval covers the chance of initial "
            "weights, order and dropout, not of which images are in test: a single accuracy has "
            f"another standard error of {binomial:.2f} points from {images:,} images. Undecided "
            "means undecided at this size, not that there is no effect.",
            " ".join(self._remarks()),
        ]
        return "#### Limits\n\n" + "\n\n".join(lines)

    def _remarks(self) -> list[str]:
        """Returns what to bear in mind about some factors."""
        frame = self.frame
        remarks = [
            "Running train accuracy is of the last epoch; `train`, `valid` and `test` are of the "
            "epoch that is best on valid."
        ]
        if "batch_size" in self.base and frame["rate"].nunique() == 1:
            remarks.append(
                f"The learning rate is {_all(frame['rate'])} throughout "
                f"({_all(frame['optimizer'])}): it is not rescaled with the batch, so a larger "
                "batch also means fewer steps of the same rate."
            )
        if "dropout" in self.base:
            remarks.append("Running train accuracy is measured with dropout on, which lowers it.")
        if "epochs" in self.base:
            remarks.append(
                "A longer run begins as the shorter one of its seed does, so on valid it cannot "
                "be worse."
            )
        return remarks


def _span(ends: Corner) -> str:
    factor, *of_factor = ends
    return f"{NAMES.get(factor, factor)} {_ends(of_factor)}"


def _ends(ordered: Sequence[Any]) -> str:
    return f"{label_of(ordered[0])} → {label_of(ordered[-1])}"


def _interaction_line(first: str, second: str, effect: Effect) -> str:
    a, b = NAMES.get(first, first), NAMES.get(second, second)
    said = {
        1: f"The effect of {b} on test accuracy rises with {a}",
        0: f"Whether the effect of {b} on test accuracy depends on {a} is undecided",
        -1: f"The effect of {b} on test accuracy falls with {a}",
    }[effect.sign]
    return f"* {said}: {_points(effect)} points."


def _design(frame: Frame) -> str:
    """Says what was run."""
    base = base_levels(frame)
    each = frame.groupby("run")["seed"].nunique()
    seeds = f"{each.min()}" if each.min() == each.max() else f"{each.min()} to {each.max()}"
    of_base = ", ".join(f"{NAMES.get(f, f)} {label_of(level)}" for f, level in base.items())
    varied = "; ".join(
        f"{NAMES.get(f, f)} {', '.join(map(label_of, levels(frame, f)))}"
        for f in base
        if frame[f].nunique() > 1
    )
    pairs = [f"{NAMES.get(a[0], a[0])} with {NAMES.get(b[0], b[0])}" for a, b in crossed(frame)]
    cores = f", cores: {_all(frame['cores'])}" if set(frame["platform"]) == {"cpu"} else ""
    return (
        f"{len(frame)} runs on {_all(frame['data'])} ({_all(frame['device'])}{cores}): {len(each)} "
        f"configurations, {seeds} seeds each. The base: {of_base}. Varied: {varied}. Varied "
        f"together: {'; '.join(pairs) or 'none'}."
    )


def _cells(frame: Frame) -> str:
    """Returns the mean of each configuration over its seeds."""
    time, unit = time_column(frame)
    rows = [
        [
            f"`{run}`",
            str(len(rows)),
            *(f"{rows[column].mean():.3f}" for column in ACCURACIES),
            f"{rows[time].mean():.0f}",
            f"{rows['best_epoch'].mean():.1f}",
        ]
        for run, rows in frame.groupby("run", sort=True)
    ]
    head = ["Configuration", "seeds", *ACCURACIES.values(), f"time ({unit})", "best epoch"]
    return f"#### Means over seeds\n\n{markdown_lib.table(head, rows)}"


def _all(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(values.unique()))


def _points(effect: Effect) -> str:
    # Adding 0 takes the sign off -0.0.
    change, low, high = (round(x, 1) + 0.0 for x in (effect.estimate, effect.low, effect.high))
    return f"{change:+.1f} ({low:+.1f} to {high:+.1f})"


def _ratio(effect: Effect) -> str:
    ratio, low, high = (math.exp(x) for x in (effect.estimate, effect.low, effect.high))
    return f"x{ratio:.2f} ({low:.2f} to {high:.2f})"
