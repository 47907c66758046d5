"""Figures of a factor study: a point for each run, a line through the means over seeds."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
_KEY = "a point for each run, a line through the means over seeds"
_BETWEEN_SEEDS = 0.08  # of the distance of two levels, so that equal points are seen


def drawn(frame: Frame) -> dict[str, Callable[[Frame], Any]]:
    """Returns the figures that a table has enough runs for.

    Args:
      frame: from :func:`fer_jax.study.table.load`.

    Returns:
      Name -> function from the table to a matplotlib figure: accuracy by factor, time by factor
      and, where they were crossed, convolution layers with dropout. None before the base was run.
    """
    if frame.empty or "base" not in set(frame["run"]):
        return {}
    found = {"factors_accuracy": _draw_accuracy, "factors_time": _draw_time}
    if any((a[0], b[0]) == ("conv_layers", "dropout") for a, b in crossed(frame)):
        found["factors_interaction"] = _draw_interaction
    return found


def draw(frame: Frame, folder: Path) -> list[Path]:
    """Saves :func:`drawn` as SVG, the same bytes for the same table.

    Args:
      frame: from :func:`fer_jax.study.table.load`.
      folder: where to; created if missing.

    Returns:
      The files.
    """
    return [_save(make(frame), folder / f"{name}.svg") for name, make in drawn(frame).items()]


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": path.stem}):  # ids would be random
        figure.savefig(path, metadata={"Date": None})
    return path


def _panels(frame: Frame, height: float) -> tuple[Any, list[tuple[Any, str, Frame]]]:
    """Returns a figure and, for each varied factor, axes, its name and its runs around the base."""
    varied = [f for f in factors(frame) if one_at_a_time(frame, f)[f].nunique() > 1]
    rows = math.ceil(len(varied) / 3)
    figure = create_figure(10, height * rows)
    grid = figure.subplots(rows, 3, sharey=True, squeeze=False).flat
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


def _add_legend(figure: Any, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, title=_KEY, loc="outside upper center", ncols=len(names))


def _draw_accuracy(frame: Frame) -> Any:
    figure, panels = _panels(frame, 3.2)
    for axes, factor, rows in panels:
        for column, name in ACCURACIES.items():
            _draw_line(axes, levels(frame, factor), rows, factor, column, _STYLES[column], name)
    for axes, *_ in panels[::3]:
        axes.set_ylabel("accuracy (top-1)")
    _add_legend(figure, panels[0][0])
    return figure


def _draw_time(frame: Frame) -> Any:
    column, unit = time_column(frame)
    figure, panels = _panels(frame, 2.6)
    for axes, factor, rows in panels:
        ticks = levels(frame, factor)
        _draw_line(axes, ticks, rows, factor, column, (BLUE, "-", "o"), unit)
        axes.set_ylim(bottom=0)
    for axes, *_ in panels[::3]:
        axes.set_ylabel(f"training time\n({unit})")
    figure.suptitle(_KEY, fontsize="medium")
    return figure


def _draw_interaction(frame: Frame) -> Any:
    figure = create_figure(10, 3)
    rows = one_at_a_time(frame, "conv_layers", "dropout")
    ticks = levels(frame, "dropout")
    several = rows.groupby("conv_layers")["dropout"].nunique()
    layers = several[several > 1].index
    styles = itertools.cycle(_STYLES.values())
    styles = {layer: next(styles) for layer in layers}
    grid = figure.subplots(1, len(ACCURACIES), sharey=True)
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
    _add_legend(figure, grid[0])
    return figure
