"""What a factor study says, in words and tables computed from its numbers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fer_jax.report import markdown
from fer_jax.report.records import NOT_MEASURED
from fer_jax.study.analysis import Analysis, Change, Interaction
from fer_jax.study.design import label_of
from fer_jax.study.effects import Effect, Frame, NotSeparable
from fer_jax.study.table import (
    ACCURACIES,
    NAMES,
    RUNNING,
    TEST,
    base_levels,
    crossed,
    levels,
    time_column,
)

# The paper's claims that a factor study can test: factor -> the claim.
CLAIMS = {
    "conv_layers": "More convolution layers help",
    "dropout": "More dropout helps",
    "batch_size": "Larger batches help",
    "epochs": "More epochs help",
}
# What the paper also says, of time.
_TIME_CLAIM = ("hidden_layers", "Hidden fully connected layers cost time")
BLOCKS = (
    "factor-design",
    "claims",
    "factor-extremes",
    "factor-levels",
    "factor-interactions",
    "factor-means",
    "factor-limits",
)


def blocks(frame: Frame) -> dict[str, str]:
    """Returns what a document shows of a study, block -> Markdown.

    Args:
      frame: from :func:`fer_jax.study.table.load`; None or empty where nothing is measured.

    Returns:
      `BLOCKS`; those that need more runs than there are say so.
    """
    shown = analysed(frame, "The factor study", BLOCKS, _intervals)
    if frame is not None and not frame.empty:  # whatever can be told apart
        shown["factor-means"] = means(frame)
    return {name: shown[name] for name in BLOCKS}


def analysed(
    frame: Frame, title: str, names: Sequence[str], make: Callable[[Analysis], dict[str, str]]
) -> dict[str, str]:
    """Returns what `make` says of a study's analysis; in each block why not, while it cannot.

    Args:
      frame: the study's runs, from :func:`fer_jax.study.table.load`; None or empty without any.
      title: what the study is called.
      names: of the blocks.
      make: returns them, block -> Markdown.
    """
    if frame is None or frame.empty:
        return dict.fromkeys(names, f"{title}: {NOT_MEASURED}.")
    try:
        return make(Analysis(frame))
    except NotSeparable as error:
        return dict.fromkeys(names, f"Too few runs for intervals yet: {error}.")


def _intervals(analysis: Analysis) -> dict[str, str]:
    return {
        "factor-design": design(analysis.frame),
        "claims": claims(analysis),
        "factor-extremes": effects_table(
            analysis, "Factor", [(_span(c), c.effects) for c in analysis.extremes()]
        ),
        "factor-levels": effects_table(
            analysis,
            "Level",
            [
                (f"{factor_name(c.factor)}: {label_of(c.high)}", c.effects)
                for c in analysis.against_base()
            ],
        ),
        "factor-interactions": interactions(analysis),
        "factor-limits": limits(analysis),
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


def claims(analysis: Analysis) -> str:
    """Returns a line for each of the paper's claims."""
    lines = []
    for factor, claim in CLAIMS.items():
        change = analysis.between_ends(factor)
        if change is None:
            lines.append(f"* **{claim}**: {NOT_MEASURED}.")
            continue
        training, test = change.effects[RUNNING], change.effects[TEST]
        lines.append(
            f"* **{claim}** ({_ends(change.low, change.high)}): **{verdict(training, test)}**. "
            f"Running train accuracy changes by {_points(training)} points, test accuracy by "
            f"{_points(test)}. All else as in the base, {label_of(analysis.best_on_valid(factor))} "
            "is best on valid."
        )
    factor, claim = _TIME_CLAIM
    if change := analysis.between_ends(factor):
        effect = change.effects[analysis.time]
        said = {1: "holds", 0: "undecided", -1: "the opposite holds"}[effect.sign]
        lines.append(
            f"* **{claim}** ({_ends(change.low, change.high)}): **{said}**. Training takes "
            f"{_ratio(effect)} of the {analysis.unit}."
        )
    return "\n".join(lines)


def interactions(analysis: Analysis) -> str:
    """Returns how much one factor's effect depends on another's level."""
    found = analysis.interactions()
    if not found:
        return "No two factors were varied together."
    rows = []
    for one in found:
        if (one.first[0], one.second[0]) == ("conv_layers", "dropout"):
            rows += [(_span(change), change.effects) for change in one.within]
        first, second = (f"{factor_name(f)} {_ends(low, high)}" for f, low, high in one[:2])
        rows.append((f"interaction of {first} with {second}", one.effects))
    lines = [_interaction_line(one) for one in found]
    return "\n".join([effects_table(analysis, "Effect", rows), "", *lines])


def _interaction_line(found: Interaction) -> str:
    a, b = factor_name(found.first[0]), factor_name(found.second[0])
    effect = found.effects[TEST]
    said = {
        1: f"The effect of {b} on test accuracy rises with {a}",
        0: f"Whether the effect of {b} on test accuracy depends on {a} is undecided",
        -1: f"The effect of {b} on test accuracy falls with {a}",
    }[effect.sign]
    return f"* {said}: {_points(effect)} points."


def design(frame: Frame) -> str:
    """Says what was run."""
    base = base_levels(frame)
    each = frame.groupby("run")["seed"].nunique()
    seeds = f"{each.min()}" if each.min() == each.max() else f"{each.min()} to {each.max()}"
    of_base = ", ".join(f"{factor_name(f)} {label_of(level)}" for f, level in base.items())
    varied = "; ".join(
        f"{factor_name(f)} {', '.join(map(label_of, levels(frame, f)))}"
        for f in base
        if frame[f].nunique() > 1
    )
    pairs = [f"{factor_name(a[0])} with {factor_name(b[0])}" for a, b in crossed(frame)]
    cores = f", cores: {_all(frame['cores'])}" if set(frame["platform"]) == {"cpu"} else ""
    return (
        f"{len(frame)} runs on {_all(frame['data'])} ({_all(frame['device'])}{cores}): {len(each)} "
        f"configurations, {seeds} seeds each. The base: {of_base}. Varied: {varied}. Varied "
        f"together: {'; '.join(pairs) or 'none'}."
    )


def means(frame: Frame) -> str:
    """Returns the mean of each configuration over its seeds."""
    time, unit = time_column(frame)
    rows = [
        [
            f"`{run}`",
            *(f"{rows[column].mean():.3f}" for column in ACCURACIES),
            len(rows),
            f"{rows[time].mean():.0f}",
            f"{rows['best_epoch'].mean():.1f}",
        ]
        for run, rows in frame.groupby("run", sort=True)
    ]
    header = ("Configuration", *ACCURACIES.values(), "seeds", f"time ({unit})", "best epoch")
    return markdown.table(header, rows)


def limits(analysis: Analysis) -> str:
    """Returns what the numbers do not say."""
    frame = analysis.frame
    deviation, degrees_of_freedom = analysis.error()
    lines = [
        "Accuracies are in percentage points, times as ratios; in brackets the 95 % confidence "
        "interval, bold where it leaves out no change. Intervals come from an additive linear "
        "model with seeds as blocks, fitted by ordinary least squares: effects are averages "
        "over the other factors' levels that were run, and the error, which holds whatever "
        f"interactions the model leaves out, {deviation:.2f} points on test with "
        f"{degrees_of_freedom} degrees of freedom, "
        "is taken to be of one size in all configurations. An interaction is estimated with "
        "the products of its two factors added. Each interval stands alone: of twenty without "
        "any effect one would be bold.",
        f"With {frame['seed'].nunique()} seeds an interval covers the chance of initial "
        "weights, order and dropout, not of which images are in test: a single accuracy has "
        f"another standard error of {analysis.binomial_error():.2f} points from "
        f"{analysis.test_images():,} images. Undecided means undecided at this size, not that "
        "there is no effect.",
        " ".join(_remarks(analysis)),
    ]
    return "\n\n".join(lines)


def _remarks(analysis: Analysis) -> list[str]:
    """Returns what to bear in mind about some factors."""
    frame = analysis.frame
    remarks = [
        "Running train accuracy is of the last epoch; `train`, `valid` and `test` are of the "
        "epoch that is best on valid."
    ]
    if "batch_size" in analysis.base and frame["train.learning_rate"].nunique() == 1:
        remarks.append(
            f"The learning rate is {_all(frame['train.learning_rate'])} throughout "
            f"({_all(frame['train.optimizer'])}): it is not rescaled with the batch, so a larger "
            "batch also means fewer steps of the same rate."
        )
    if "dropout" in analysis.base:
        remarks.append("Running train accuracy is measured with dropout on, which lowers it.")
    if "epochs" in analysis.base:
        remarks.append(
            "A longer run begins as the shorter one of its seed does, so on valid it cannot be "
            "worse."
        )
    return remarks


def effects_table(
    analysis: Analysis, title: str, rows: Sequence[tuple[str, dict[str, Effect]]]
) -> str:
    """Formats effects, in bold where their interval leaves out no change.

    Args:
      analysis: what they are from.
      title: heading of the first column.
      rows: what stands in the first column, and the effects on each response.
    """

    def cell(column: str, effect: Effect) -> str:
        text = _ratio(effect) if column == analysis.time else _points(effect)
        return f"**{text}**" if effect.sign else text

    names = ACCURACIES | {analysis.time: f"time ({analysis.unit})"}
    header = (title, *(names[column] for column in analysis.columns))
    return markdown.table(
        header, [[name, *(cell(c, effects[c]) for c in analysis.columns)] for name, effects in rows]
    )


def factor_name(factor: str) -> str:
    """Returns what a factor is called in text."""
    return NAMES.get(factor, factor)


def _span(change: Change) -> str:
    text = f"{factor_name(change.factor)} {_ends(change.low, change.high)}"
    if change.at:
        factor, level = change.at
        text += f", at {factor_name(factor)} {label_of(level)}"
    return text


def _ends(low: Any, high: Any) -> str:
    return f"{label_of(low)} → {label_of(high)}"


def _all(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(values.unique()))


def _points(effect: Effect) -> str:
    # Adding 0 takes the sign off -0.0.
    change, low, high = (round(x, 1) + 0.0 for x in (effect.estimate, effect.low, effect.high))
    return f"{change:+.1f} ({low:+.1f} to {high:+.1f})"


def _ratio(effect: Effect) -> str:
    ratio, low, high = (math.exp(x) for x in (effect.estimate, effect.low, effect.high))
    return f"x{ratio:.2f} ({low:.2f} to {high:.2f})"
