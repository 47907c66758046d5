"""Figures of one run, drawn without a display."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.runs import workdir

# Okabe & Ito's colours, told apart by the colour-blind; line styles tell them apart in grey.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def create_figure(width: float, height: float):
    """Returns a matplotlib figure of so many inches, and its way of saving needs no display."""
    from matplotlib.figure import Figure  # takes half a second to import

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def learning_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draws accuracy and loss by epoch, running training beside valid, as PNG."""
    figure = create_figure(8, 3.4)
    epochs = [row["epoch"] for row in history]
    styles = {"train_running": (BLUE, "--", "train, running"), "valid": (ORANGE, "-", "valid")}
    if any("train/loss" in row for row in history):  # it may have been asked for half way
        styles["train"] = (GREEN, ":", "train, no dropout")
    for axes, name, unit in zip(
        figure.subplots(1, 2), ("accuracy", "loss"), ("", " (nats)"), strict=True
    ):
        for split, (color, style, label) in styles.items():
            values = [row.get(f"{split}/{name}", np.nan) for row in history]
            axes.plot(epochs, values, style, color=color, label=label, marker=".")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name + unit)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    _save(figure, path)


def confusion_matrix(
    confusion: list[list[int]], classes: Sequence[str], title: str, path: Path
) -> None:
    """Draws a confusion matrix, images in the cells and shade by recall, as PNG."""
    figure = create_figure(6, 5.2)
    axes = figure.subplots()
    draw_confusion_matrix(axes, confusion, classes)
    axes.set_title(title)
    _save(figure, path)


def draw_confusion_matrix(axes: Any, confusion: list[list[int]], classes: Sequence[str]) -> None:
    """Draws :func:`confusion_matrix` into a figure's axes."""
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.figure.colorbar(image, ax=axes, label="share of the true class")


def _save(figure: Any, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    workdir.write_bytes(path, png.getvalue())
