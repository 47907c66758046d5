"""Figures of a factor study: a point for each run, a line through the means over seeds."""

import itertools
import json
import math
import textwrap
from collections.abc import Callable
from typing import Any

from fer_jax.report.figures import NARROW, Drawing
from fer_jax.runs.plots import BLUE, GREEN, ORANGE, create_figure
from fer_jax.study.design import label_of
from fer_jax.study.effects import Frame
from fer_jax.study.table import (
    ACCURACIES,
    NAMES,
    base_levels,
    crossed,
    factors,
    levels,
    one_at_a_time,
    time_column,
)

# Line and marker tell apart what colours do not.
_STYLES = {
    "train_running/accuracy": (BLUE, "--", "o"),
    "train/accuracy": (GREEN, ":", "s"),
    "valid/accuracy": ("black", "-.", "^"),
    "test/accuracy": (ORANGE, "-", "D"),
}
_ALTS = {
    "factors_accuracy": "Accuracy against each factor of the study: running train, train, valid "
    "and test. The tables beside it have the numbers.",
    "factors_time": "Training time against each factor of the study. The tables beside it have the "
    "numbers.",
    "factors_interaction": "Accuracy with few and many convolution layers, each without and with "
    "dropout. The tables beside it have the numbers.",
}
_KEY = "a point for each run, a line through the means over seeds"
_BETWEEN_SEEDS = 0.08  # of the distance of two levels, so that equal points are seen


def drawings(frame: Frame) -> dict[str, Drawing]:
    """Returns the figures that a table has enough runs for, name -> drawing.

    Args:
      frame: from :func:`fer_jax.study.table.load`; None or empty where nothing is measured.

    Returns:
      Accuracy by factor, time by factor and, where they were crossed, convolution layers with
      dropout. None before the base was run.
    """
    if frame is None or frame.empty or "base" not in set(frame["run"]):
        return {}
    made = {"factors_accuracy": _draw_accuracy, "factors_time": _draw_time}
    if any((a[0], b[0]) == ("conv_layers", "dropout") for a, b in crossed(frame)):
        made["factors_interaction"] = _draw_interaction
    rows = json.loads(frame.to_json(orient="records", double_precision=6))
    return {name: Drawing(name, _ALTS[name], rows, _of(make, frame)) for name, make in made.items()}


def _of(make: Callable[[Frame, bool], Any], frame: Frame) -> Callable[[Any, bool], Any]:
    return lambda _, narrow=False: make(frame, narrow)


def _panels(frame: Frame, height: float, narrow: bool) -> tuple[Any, list[tuple[Any, str, Frame]]]:
    """Returns a figure and, for each varied factor, axes, its name and its runs around the base."""
    varied = [f for f in factors(frame) if one_at_a_time(frame, f)[f].nunique() > 1]
    columns = 1 if narrow else 3
    rows = math.ceil(len(varied) / columns)
    figure = create_figure(NARROW if narrow else 10, height * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    panels = []
    base = base_levels(frame)
    for axes, factor in zip(grid, varied, strict=False):
        ticks = levels(frame, factor)
        axes.set_xticks(range(len(ticks)), [_tick(tick, base[factor]) for tick in ticks])
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set_xlabel(NAMES.get(factor, factor))
        axes.grid(alpha=0.3)
        panels.append((axes, factor, one_at_a_time(frame, factor)))
    for axes in list(grid)[len(varied) :]:
        axes.set_visible(False)
    return figure, panels


def _tick(level: Any, base: Any) -> str:
    return label_of(level).replace("+", "\n+ ") + ("\n(base)" if level == base else "")


def _draw_line(
    axes: Any, ticks: list[Any], rows: Frame, x: str, y: str, style: tuple, name: str
) -> None:
    """Draws a point for each run and a line through the means over seeds."""
    color, line, marker = style
    means = rows.groupby(x)[y].mean()
    places = sorted((ticks.index(level), mean) for level, mean in means.items())
    axes.plot(*zip(*places, strict=True), line, color=color)
    seeds = sorted(rows["seed"].unique())
    middle = (len(seeds) - 1) / 2
    across = [
        ticks.index(level) + _BETWEEN_SEEDS * (seeds.index(seed) - middle)
        for level, seed in zip(rows[x], rows["seed"], strict=True)
    ]
    axes.plot(across, rows[y], marker, color=color, markersize=4.5)
    axes.plot([], [], line, color=color, marker=marker, markersize=4.5, label=name)


def _add_legend(figure: Any, axes: Any, narrow: bool) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if narrow else len(names)
    title = textwrap.fill(_KEY, 40) if narrow else _KEY
    figure.legend(handles, names, title=title, loc="outside upper center", ncols=columns)


def _draw_accuracy(frame: Frame, narrow: bool) -> Any:
    figure, panels = _panels(frame, 3.2, narrow)
    for axes, factor, rows in panels:
        for column, name in ACCURACIES.items():
            _draw_line(axes, levels(frame, factor), rows, factor, column, _STYLES[column], name)
    for axes, *_ in panels[:: 1 if narrow else 3]:
        axes.set_ylabel("accuracy (top-1)")
    _add_legend(figure, panels[0][0], narrow)
    return figure


def _draw_time(frame: Frame, narrow: bool) -> Any:
    column, unit = time_column(frame)
    figure, panels = _panels(frame, 2.6, narrow)
    for axes, factor, rows in panels:
        ticks = levels(frame, factor)
        _draw_line(axes, ticks, rows, factor, column, (BLUE, "-", "o"), unit)
        axes.set_ylim(bottom=0)
    for axes, *_ in panels[:: 1 if narrow else 3]:
        axes.set_ylabel(f"training time\n({unit})")
    figure.suptitle(textwrap.fill(_KEY, 40) if narrow else _KEY, fontsize="medium")
    return figure


def _draw_interaction(frame: Frame, narrow: bool) -> Any:
    figure = create_figure(NARROW, 11) if narrow else create_figure(10, 3)
    rows = one_at_a_time(frame, "conv_layers", "dropout")
    ticks = levels(frame, "dropout")
    several = rows.groupby("conv_layers")["dropout"].nunique()
    layers = several[several > 1].index
    styles = itertools.cycle(_STYLES.values())
    styles = {layer: next(styles) for layer in layers}
    grid = figure.subplots(*((4, 1) if narrow else (1, 4)), sharey=True)
    for axes, (column, name) in zip(grid, ACCURACIES.items(), strict=True):
        for layer, style in styles.items():
            of_layer = rows[rows["conv_layers"] == layer]
            title = f"{layer} convolution layers"
            _draw_line(axes, ticks, of_layer, "dropout", column, style, title)
        axes.set_xticks(range(len(ticks)), [label_of(tick) for tick in ticks])
        axes.set_xlabel("dropout")
        axes.set_title(name)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("accuracy (top-1)")
    _add_legend(figure, grid[0], narrow)
    return figure
