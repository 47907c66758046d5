"""Figures of a report: the numbers of each, taken from records, and a function that draws them.

The numbers are plain JSON and are kept beside the pictures, so that a test can compare what is
drawn with what the records give, whatever matplotlib's version.
"""

import hashlib
import io
import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fer_jax.labels import CLASSES
from fer_jax.report import records, statistics, tables
from fer_jax.report.paper import CONFUSION, PAPER, TITLES
from fer_jax.report.records import Record, Runs
from fer_jax.runs.plots import BLUE, GREEN, ORANGE, create_figure

GREY = "#777777"
NARROW = 4.2  # inches: on a phone of 390 CSS pixels text then has about the page's size
PER_CLASS = 2  # images of each class on a page of predictions
MISTAKES = 10  # on a sheet
# Curve -> colour, line style, marker, name: told apart without colour too.
CURVES = {
    "train_running": (BLUE, "--", "o", "train, running (dropout on)"),
    "train": (GREEN, ":", "^", "train, without dropout"),
    "valid": (ORANGE, "-", "s", "valid"),
}


class Drawing(NamedTuple):
    """A figure of a report."""

    name: str  # of its file, without the ending
    alt: str  # what a reader who cannot see it is told
    data: Any  # JSON: every number drawn
    draw: Callable[[Any, bool], Any]  # (data, narrow) -> matplotlib figure; narrow: of one column

    def svg(self, narrow: bool = False) -> str:
        """Returns the figure as SVG, the same text for the same numbers and matplotlib.

        Args:
          narrow: panels below one another, for a phone.
        """
        import matplotlib

        file = io.StringIO()
        style: Any = {
            "svg.hashsalt": self.name,
            "svg.fonttype": "none",  # text stays text: smaller, and found by a search
            "font.sans-serif": ["DejaVu Sans", "Verdana"],  # equally wide
        }
        with matplotlib.rc_context(style):
            self.draw(self.data, narrow).savefig(
                file,
                format="svg",
                metadata={"Date": None, "Creator": "fer-jax", "Description": digest(self.data)},
            )
        return file.getvalue()


def _columns(narrow: bool) -> int:
    return 1 if narrow else 2


def _stacked(narrow: bool, rows: int, columns: int) -> tuple[int, int]:
    """Returns rows and columns of panels: all below one another where it is narrow."""
    return (rows * columns, 1) if narrow else (rows, columns)


def digest(data: Any) -> str:
    """Returns what a figure's file says of its numbers: the beginning of their SHA-256."""
    return f"numbers {hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]}"


def _rounded(values: Sequence[float] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Returns plain numbers; None for NaN, which JSON does not have."""
    return [None if np.isnan(v) else round(float(v), digits) for v in values]


# Curves


def curves(found: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns for each run its seed, epochs, and accuracy and loss of each curve it has."""
    return [
        {
            "seed": record["seed"],
            "epoch": [row["epoch"] for row in record["history"]],
            "curves": {
                curve: {
                    name: _rounded([row[f"{curve}/{name}"] for row in record["history"]])
                    for name in ("accuracy", "loss")
                }
                for curve in CURVES
                if all(f"{curve}/loss" in row for row in record["history"])
            },
        }
        for record in found
    ]


def learning_curves(name: str, found: Sequence[Record]) -> Drawing:
    """Accuracy and loss by epoch, all seeds of one of the paper's networks."""
    data = {"paper": PAPER[name][:2], "runs": curves(found)}
    last = found[0]["history"][-1]
    alt = (
        f"{TITLES[name]}: accuracy and loss by epoch, seeds: {len(found)}. After epoch "
        f"{last['epoch']} of seed {found[0]['seed']}, running training accuracy is "
        f"{last['train_running/accuracy']:.3f} and loss {last['train_running/loss']:.3f}, on valid "
        f"{last['valid/accuracy']:.3f} and {last['valid/loss']:.3f}. The paper's figures are "
        f"{PAPER[name][0]:.3g} and {PAPER[name][1]:.3g}."
    )
    return Drawing(f"learning_curves_{name}", alt, data, draw_learning_curves)


def draw_learning_curves(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`learning_curves`."""
    figure = create_figure(NARROW, 6.4) if narrow else create_figure(7.6, 3.7)
    panels = figure.subplots(*_stacked(narrow, 1, 2))
    for axes, name, said in zip(panels, ("accuracy", "loss"), data["paper"], strict=True):
        for i, run in enumerate(data["runs"]):
            for curve, values in run["curves"].items():
                color, style, marker, label = CURVES[curve]
                axes.plot(
                    run["epoch"], values[name], color=color, linestyle=style, marker=marker,
                    markersize=3, linewidth=1.2, label=None if i else label,
                )  # fmt: skip
        axes.axhline(said, color="black", linewidth=1, linestyle="-.", label="the paper's figure")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy" if name == "accuracy" else "loss (nats)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0, top=1 if name == "accuracy" else None)
        axes.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=_columns(narrow))
    return figure


def related_curves(runs: Runs) -> Drawing:
    """Accuracy by epoch of the related work's networks, a panel each; one epoch makes no curve."""
    shown = {
        tables.title(name): curves(row)
        for name, row in tables.main_rows(runs).items()
        if name not in PAPER and len(row[0]["history"]) > 1
    }
    alt = f"Accuracy by epoch, running training and valid, a panel each: {', '.join(shown)}."
    return Drawing("learning_curves_related", alt, shown, draw_related_curves)


def draw_related_curves(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`related_curves`."""
    columns = _columns(narrow)
    rows = -(-len(data) // columns)
    figure = create_figure(NARROW if narrow else 7.6, 2.2 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    handles = {}
    for axes, (title, runs) in zip(panels, data.items(), strict=False):
        for run in runs:
            for curve, values in run["curves"].items():
                color, style, marker, label = CURVES[curve]
                [handles[label]] = axes.plot(
                    run["epoch"], values["accuracy"], color=color, linestyle=style, marker=marker,
                    markersize=3,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[::columns]:
        axes.set_ylabel("accuracy")
    for axes in list(figure.axes)[len(data) :]:
        axes.remove()
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=_columns(narrow)
    )
    return figure


def paper_pairs(runs: Runs) -> Drawing:
    """Loss against accuracy: our curves, and the paper's pairs as points."""
    data = {
        name: {"paper": PAPER[name][:2], "runs": curves(records.main_row(runs.get(name, [])))}
        for name in PAPER
    }
    alt = (
        "Loss against accuracy, a panel for each of the paper's networks: our curves of running "
        "training, of training without dropout where recorded, and of valid, and a star for the "
        "paper's pair. The table beside it has the numbers."
    )
    return Drawing("paper_pairs", alt, data, draw_paper_pairs)


def draw_paper_pairs(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`paper_pairs`."""
    figure = create_figure(NARROW, 12) if narrow else create_figure(7.6, 7)
    handles: dict[str, Any] = {}
    panels = figure.subplots(*_stacked(narrow, 2, 2)).flat
    for axes, (name, found) in zip(panels, data.items(), strict=True):
        for run in found["runs"]:
            for curve, values in run["curves"].items():
                color, style, marker, label = CURVES[curve]
                [handles[label]] = axes.plot(
                    values["accuracy"], values["loss"], color=color, linestyle=style, marker=marker,
                    markersize=3.5,
                )  # fmt: skip
        [handles["the paper's pair"]] = axes.plot(
            *([x] for x in found["paper"]), linestyle="", marker="*", markersize=15, color="black",
            markerfacecolor="none", markeredgewidth=1.5,
        )  # fmt: skip
        axes.set_title(TITLES[name])
        if not found["runs"]:
            axes.text(0.5, 0.5, records.NOT_MEASURED, transform=axes.transAxes, ha="center")
        axes.set_xlim(0.2, 1)
        axes.set_ylim(0, max(2, axes.get_ylim()[1]))
        axes.set_xlabel("accuracy")
        axes.set_ylabel("loss (nats)")
        axes.grid(alpha=0.3)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=_columns(narrow)
    )
    return figure


# Table 3


def confusion(found: Record) -> Drawing:
    """The paper's confusion matrix of Architecture 01 and ours, on valid."""
    data = {
        "the paper": [list(line) for line in CONFUSION],
        f"ours, seed {found['seed']}": found["metrics"]["valid"]["confusion"],
    }
    alt = (
        "Two confusion matrices of Architecture 01 on PublicTest, the paper's and ours; rows are "
        "true classes, shade is the share of the true class. The tables beside it have the numbers."
    )
    return Drawing("confusion_arch01", alt, data, draw_confusion)


def draw_confusion(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`confusion`."""
    figure = create_figure(NARROW, 8.4) if narrow else create_figure(9.2, 4.9)
    panels = figure.subplots(*_stacked(narrow, 1, 2), sharey=True)
    for axes, (title, matrix) in zip(panels, data.items(), strict=True):
        counts = np.asarray(matrix)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right")
        axes.set_yticks(range(len(CLASSES)), CLASSES)
        axes.set_xlabel("predicted")
        axes.set_title(title)
    panels[0].set_ylabel("true")
    place = "bottom" if narrow else "right"
    figure.colorbar(image, ax=panels, label="share of the true class", shrink=0.8, location=place)
    return figure


# Single images of test


class Faces:
    """What is known of the test images: their names, and the pictures where there are any.

    Attributes:
      names: `[n]` names in the records' order.
      images: `[n, 48, 48, 1]` uint8, or None.
    """

    def __init__(self, names: Sequence[str], images: np.ndarray | None = None):
        """Keeps what it is given."""
        self.names = names
        self.images = images

    def picture(self, index: int) -> np.ndarray | None:
        """Returns `[48, 48]` uint8, None where there are no pictures."""
        return None if self.images is None else np.asarray(self.images[index])[..., 0]


def _image(found: Record, faces: Faces, index: int) -> dict[str, Any]:
    labels, probabilities = records.predictions(found)
    return {
        "index": int(index),
        "id": faces.names[index],
        "true": CLASSES[labels[index]],
        "predicted": CLASSES[probabilities[index].argmax()],
        "probabilities": _rounded(probabilities[index]),
    }


def chosen_images(labels: np.ndarray) -> list[int]:
    """Returns the images shown: the first `PER_CLASS` of each class, in the order of the split."""
    return [int(i) for c in range(len(CLASSES)) for i in np.flatnonzero(labels == c)[:PER_CLASS]]


def predictions(name: str, found: Record, faces: Faces) -> Drawing:
    """Seven probabilities of a few test images, as in the paper's figures 9 to 11."""
    chosen = chosen_images(records.predictions(found)[0])
    data = [_image(found, faces, index) for index in chosen]
    right = sum(image["true"] == image["predicted"] for image in data)
    alt = (
        f"{TITLES[name]}: bar charts of the seven probabilities for {len(data)} images of "
        f"PrivateTest, the first {PER_CLASS} of each class; {right} are recognised. "
        + "; ".join(f"{x['id']} is {x['true']}, taken for {x['predicted']}" for x in data)
        + "."
    )

    def draw(data: list[dict[str, Any]], narrow: bool = False):
        return draw_predictions(data, faces, narrow)

    return Drawing(f"predictions_{name}", alt, data, draw)


def draw_predictions(data: list[dict[str, Any]], faces: Faces, narrow: bool = False):
    """Draws :func:`predictions`, with the pictures where there are any."""
    columns = _columns(narrow)
    rows = -(-len(data) // columns)
    figure = create_figure(NARROW if narrow else 7.6, 1.55 * rows)
    pictured = faces.images is not None
    widths = [1, 1.6] * columns if pictured else [1] * columns
    panels = figure.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for i, image in enumerate(data):
        row = panels[i // columns]
        if pictured:
            _draw_picture(row[2 * (i % columns)], faces, image)
        _draw_bars(row[2 * (i % columns) + 1 if pictured else i % columns], image)
    figure.supxlabel("probability", fontsize=8)
    return figure


def _draw_picture(axes, faces: Faces, image: dict[str, Any]) -> None:
    axes.imshow(faces.picture(image["index"]), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def _draw_bars(axes, image: dict[str, Any]) -> None:
    right = image["true"] == image["predicted"]
    bars = axes.barh(CLASSES, image["probabilities"], color="#BBBBBB")
    top = bars[CLASSES.index(image["predicted"])]
    top.set(facecolor=BLUE if right else ORANGE, edgecolor="white")
    top.set_hatch(None if right else "////")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=7)
    axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=7)
    axes.get_yticklabels()[CLASSES.index(image["true"])].set_fontweight("bold")
    axes.invert_yaxis()
    verdict = "right" if right else f"taken for {image['predicted']}"
    axes.set_title(f"{image['id']}\n{image['true']}, {verdict}", fontsize=7.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def mistakes(found: Record, faces: Faces) -> list[dict[str, Any]]:
    """Returns the test images with the greatest probability of a wrong class, greatest first.

    Equals, which the records' 16 bits make likely, come in the order of the split.
    """
    labels, probabilities = records.predictions(found)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return [_image(found, faces, int(index)) for index in wrong[order][:MISTAKES]]


def mistakes_sheet(name: str, found: Record, faces: Faces) -> Drawing:
    """The pictures of the most confident mistakes; only where there are pictures."""
    data = mistakes(found, faces)
    alt = f"{TITLES[name]}: the faces of the most confident mistakes, in the order of the table."

    def draw(data: list[dict[str, Any]], narrow: bool = False):
        figure = create_figure(NARROW, 9) if narrow else create_figure(7.6, 4.6)
        panels = figure.subplots(*((5, 2) if narrow else (2, 5)))
        for axes, image in zip(panels.flat, data, strict=False):
            _draw_picture(axes, faces, image)
            probability = max(image["probabilities"])
            text = f"{image['id']}\nlabel {image['true']}\n{image['predicted']} {probability:.3f}"
            axes.set_title(text, fontsize=7.5)
        for axes in figure.axes[len(data) :]:
            axes.remove()
        return figure

    return Drawing(f"mistakes_{name}", alt, data, draw)


# Calibration and spread


def reliability(runs: Runs) -> Drawing:
    """Reliability diagrams of the paper's networks on test, the lowest seed of each."""
    data = {}
    for name in PAPER:
        for found in records.main_row(runs.get(name, []))[:1]:
            bins = statistics.calibration(*records.predictions(found))
            data[TITLES[name]] = {
                "count": bins.count.tolist(),
                "confidence": _rounded(bins.confidence),
                "accuracy": _rounded(bins.accuracy),
                "error": round(bins.error, 4),
            }
    alt = (
        "Reliability diagrams: accuracy against confidence on test in "
        f"{statistics.BINS} bins, and below each the number of images in a bin. "
        + "; ".join(f"{title}: calibration error {x['error']:.3f}" for title, x in data.items())
        + "."
    )
    return Drawing("reliability", alt, data, draw_reliability)


def draw_reliability(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`reliability`."""
    columns = _columns(narrow)
    rows = -(-len(data) // columns)
    figure = create_figure(NARROW if narrow else 7.6, 4.3 * rows)
    panels = figure.subplots(
        2 * rows, columns, height_ratios=[3, 1] * rows, sharex=True, squeeze=False
    )
    edges = np.linspace(0, 1, statistics.BINS + 1)
    for i, (title, bins) in enumerate(data.items()):
        row, column = divmod(i, columns)
        upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
        there = [k for k, count in enumerate(bins["count"]) if count]
        points = ([bins[key][k] for k in there] for key in ("confidence", "accuracy"))
        upper.plot(*points, color=BLUE, marker="o", label="test")
        upper.set_title(f"{title}\nexpected calibration error {bins['error']:.3f}", fontsize=10)
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1)
        upper.legend(loc="upper left", fontsize=8)
        upper.grid(alpha=0.3)
        lower.bar(edges[:-1], bins["count"], np.diff(edges), align="edge", color="#BBBBBB",
                  edgecolor="white")  # fmt: skip
        lower.set_ylabel("images")
        lower.set_xlabel("confidence (largest probability)")
        lower.set_xlim(0, 1)
        lower.tick_params(labelbottom=True)
    for axes in panels.reshape(rows, 2, columns).transpose(0, 2, 1).reshape(-1)[2 * len(data) :]:
        axes.remove()
    return figure


def seed_spread(runs: Runs) -> Drawing:
    """Test accuracy of each seed, with the binomial error of the number of images."""
    data = {}
    for name, row in tables.main_rows(runs).items():
        values = [found["metrics"]["test"]["accuracy"] for found in row]
        error = statistics.binomial_error(
            float(np.mean(values)), row[0]["metrics"]["test"]["count"]
        )
        data[tables.title(name)] = {"seeds": _rounded(values), "error": round(error, 4)}
    alt = (
        "Test accuracy of every network, a point for each seed, the bar 1.96 binomial errors: "
        + ("; ".join(f"{title} {np.mean(x['seeds']):.3f}" for title, x in data.items()) + ".")
    )
    return Drawing("seed_spread", alt, data, draw_seed_spread)


def draw_seed_spread(data: dict[str, Any], narrow: bool = False):
    """Draws :func:`seed_spread`."""
    figure = create_figure(NARROW if narrow else 7.6, 1.4 + (0.5 if narrow else 0.33) * len(data))
    axes = figure.subplots()
    names = [textwrap.fill(name, 22) if narrow else name for name in data]
    for i, found in enumerate(data.values()):
        axes.errorbar(
            np.mean(found["seeds"]), i, xerr=1.96 * found["error"], color=GREY, capsize=4,
            marker="|", markersize=12, label=None if i else "mean, 1.96 binomial errors",
        )  # fmt: skip
        axes.plot(
            found["seeds"], [i] * len(found["seeds"]), linestyle="", marker="o", markersize=5,
            markerfacecolor="none", color=BLUE, label=None if i else "a seed",
        )  # fmt: skip
    axes.set_yticks(range(len(data)), names, fontsize=8 if narrow else 10)
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlabel("test accuracy")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=_columns(narrow))
    return figure
