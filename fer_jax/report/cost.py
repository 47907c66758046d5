"""What accuracy costs: parameters, operations and training time of every network with a record."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fer_jax.report import markdown, records, tables
from fer_jax.report.figures import NARROW, Drawing
from fer_jax.report.records import MISSING, NOT_MEASURED, Record, Runs
from fer_jax.runs.plots import BLUE, ORANGE, create_figure


class Row(NamedTuple):
    """A network: of its mean over seeds."""

    title: str
    test: float
    cells: list[str]  # of the table, without number and title
    parameters: int
    flops: int  # an image
    core_minutes: float | None  # of training; None if it was not trained on a CPU here
    published: bool = False  # weights that others trained


def rows(runs: Runs, imported: Sequence[Record] = ()) -> list[Row]:
    """Returns the networks that were trained to the end, and published weights, best on test first.

    Nothing is chosen by that order; the report's choices are made on valid.
    """
    whole = tables.complete(runs)
    found = [_trained(name, row, whole[name]) for name, row in tables.main_rows(runs).items()]
    return sorted([*found, *map(_published, imported)], key=lambda row: -row.test)


def _trained(name: str, row: list[Record], everywhere: list[Record]) -> Row:
    trained = [found for found in everywhere if found["device"]["platform"] == "cpu"] or row
    networks = len(row[0].get("members", [0]))
    parameters, flops = tables.size(name)
    cells = [
        records.over_seeds(row, "test", "accuracy"),
        records.over_views(row, "test", "accuracy"),
        *tables.size_cells(name, networks),
        *_training(trained),
        str(len(row)),
    ]
    test = float(np.mean([found["metrics"]["test"]["accuracy"] for found in row]))
    minutes = records.core_minutes(trained)
    return Row(tables.title(name), test, cells, networks * parameters, networks * flops, minutes)


def _training(row: list[Record]) -> tuple[str, str]:
    """Returns cells: how long training took, and on what."""
    time = records.training_time(row)
    return time, MISSING if time == MISSING else records.devices(row)


def _published(found: Record) -> Row:
    name, test = found["experiment"], found["metrics"]["test"]["accuracy"]
    cells = [f"{test:.3f}", MISSING, *tables.size_cells(name), *[MISSING] * 3]
    return Row(tables.published_title(found), test, cells, *tables.size(name), None, published=True)


def table(runs: Runs, imported: Sequence[Record] = ()) -> str:
    """Returns :func:`rows` as Markdown; the numbers stand for the networks in the figure."""
    header = ("Network", "", "test", "test, views averaged", "Parameters", "MFLOP an image")
    header += ("Training", "Trained on", "Seeds")
    found = rows(runs, imported)
    if not found:
        return f"{NOT_MEASURED.capitalize()}."
    cells = [[row.title, number, *row.cells] for number, row in enumerate(found, 1)]
    return markdown.table(header, cells, text=(7,))


def figure(runs: Runs, imported: Sequence[Record] = ()) -> Drawing:
    """Test accuracy against operations an image and against core minutes of training."""
    found = rows(runs, imported)
    data = [
        {
            "title": row.title,
            "test": round(row.test, 4),
            "flops": row.flops,
            "core_minutes": row.core_minutes and round(row.core_minutes, 1),
            "published": row.published,
        }
        for row in found
    ]
    alt = (
        "Test accuracy against operations an image and against core minutes of training: "
        + "; ".join(f"{i} {row.title} {row.test:.3f}" for i, row in enumerate(found, 1))
        + "."
    )
    return Drawing("cost", alt, data, draw)


def draw(data: list[dict[str, Any]], narrow: bool = False):
    """Draws :func:`figure`; a network's number is its place in the table."""
    drawn = create_figure(NARROW, 7.0) if narrow else create_figure(7.6, 3.9)
    panels = drawn.subplots(*((2, 1) if narrow else (1, 2)), sharey=not narrow)
    names = {"flops": "FLOPs an image", "core_minutes": "core minutes of training"}
    for axes, (field, name) in zip(panels, names.items(), strict=True):
        for number, row in enumerate(data, 1):
            if row[field] is None:
                continue
            color, marker = (ORANGE, "s") if row["published"] else (BLUE, "o")
            axes.plot(row[field], row["test"], color=color, marker=marker, markersize=5)
            axes.annotate(
                str(number), (row[field], row["test"]), xytext=(4, 3), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    return drawn
