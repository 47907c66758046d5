"""Tables made from records, as Markdown; nothing in them is typed by hand."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fer_jax.labels import CLASSES
from fer_jax.report import markdown, records, statistics
from fer_jax.report.paper import CONFUSION, PAPER, RELATED, TITLES
from fer_jax.report.records import NOT_MEASURED, Record, Runs, over_seeds

# The study's own networks


def paper_table(runs: Runs) -> str:
    """Returns the study's rows beside ours, short enough for the README."""
    header = (
        *("Experiment", "The study says", "Ours: train", "valid", "test", "test, no duplicates"),
        *("Seeds", "Best epoch", "Training time", "on"),
    )
    rows = []
    for name, (accuracy, loss, hours) in PAPER.items():
        said = f"{accuracy:.3g}, loss {loss:.3g}, {hours} h"
        for row in records.by_device(runs.get(name, [])) or [[]]:
            cells = [NOT_MEASURED] + [""] * 7
            if row:
                cells = [*_accuracies(row), str(len(row)), _best_epochs(row)]
                cells += [records.training_time(row), records.devices(row)]
            rows.append([f"`{name}`", said, *cells])
    return markdown.table(header, rows, text=(1, 7, 9))


def _accuracies(row: list[Record]) -> list[str]:
    found = [over_seeds(row, split, "accuracy") for split in ("train", "valid", "test")]
    return [*found, over_seeds(row, "test", "accuracy_unique")]


def _best_epochs(row: list[Record]) -> str:
    return ", ".join(f"{r['best_epoch']} of {r['epochs_run']}" for r in row)


def accuracy_table(runs: Runs, names: Sequence[str]) -> str:
    """Returns table 5's (or 4's) accuracy and loss beside ours on every split."""
    header = (
        *("Network", "The study: accuracy", "loss", "Ours: train", "valid", "test"),
        *("test, no duplicates", "test loss (nats)", "Seeds"),
    )
    rows = []
    for name in names:
        row = records.main_row(runs.get(name, []))
        cells = [NOT_MEASURED] + [""] * 5
        if row:
            cells = [*_accuracies(row), over_seeds(row, "test", "loss"), len(row)]
        rows.append([TITLES[name], *(f"{x:.3g}" for x in PAPER[name][:2]), *cells])
    return markdown.table(header, rows)


def metrics_table(runs: Runs) -> str:
    """Returns equation (3), macro-F1 and losses of the study's networks."""
    header = ("Network", "Top-1 accuracy", "Equation (3)", "Macro-F1", "Loss: train", "valid")
    rows = []
    for name in PAPER:
        row = records.main_row(runs.get(name, []))
        cells = [NOT_MEASURED] + [""] * 4
        if row:
            measures = ("accuracy", "one_vs_rest_accuracy", "macro_f1")
            cells = [over_seeds(row, "test", measure) for measure in measures]
            cells += [over_seeds(row, split, "loss") for split in ("train", "valid")]
        rows.append([TITLES[name], *cells])
    return markdown.table(header, rows)


def time_table(runs: Runs) -> str:
    """Returns table 5's hours beside our training times, a row for each device."""
    header = ("Network", "The study", "Ours", "Epochs", "Best epoch", "Seeds", "On")
    rows = []
    for name, (_, _, hours) in PAPER.items():
        for row in records.by_device(runs.get(name, [])) or [[]]:
            cells = [NOT_MEASURED] + [""] * 4
            if row:
                epochs = ", ".join(dict.fromkeys(str(r["epochs_run"]) for r in row))
                best = ", ".join(str(r["best_epoch"]) for r in row)
                cells = [records.training_time(row), epochs, best, len(row)]
                cells.append(records.devices(row))
            rows.append([TITLES[name], f"{hours} h", *cells])
    return markdown.table(header, rows, text=(6,))


def crossing_table(runs: Runs) -> str:
    """Returns where our running training curve passes the study's accuracy, for every seed."""
    header = (
        *("Experiment", "The study: accuracy, loss", "Ours passes it after epoch"),
        *("loss where it passes", "running train accuracy, loss then"),
        *("the same without dropout", "valid accuracy, loss then", "best valid accuracy"),
    )
    rows = []
    for name, (accuracy, loss, _) in PAPER.items():
        several = len(records.by_device(runs.get(name, []))) > 1
        for found in runs.get(name, []):
            best = max(row["valid/accuracy"] for row in found["history"])
            device = f", {records.devices([found])}" if several else ""
            rows.append(
                [
                    f"`{name}`, seed {found['seed']}{device}",
                    f"{accuracy:.3g}, {loss:.3g}",
                    *_crossing_cells(found, accuracy),
                    f"{best:.3f}",
                ]
            )
    return markdown.table(header, rows)


def _crossing_cells(found: Record, accuracy: float) -> list[str]:
    row = statistics.crossing(found["history"], accuracy)
    if row is None:
        return [f"not within {found['epochs_run']} epochs", "", "", "", ""]
    loss = statistics.loss_at(found["history"], accuracy)
    pairs = [
        f"{row[f'{curve}/accuracy']:.3f}, {row[f'{curve}/loss']:.3f}"
        if f"{curve}/loss" in row
        else "not recorded"
        for curve in ("train_running", "train", "valid")
    ]
    return [str(row["epoch"]), "-" if loss is None else f"{loss:.3f}", *pairs]


def confusion_tables(found: Record | None) -> str:
    """Returns table 3's matrix and, below it, ours on the same split (valid)."""
    tables = [f"The study's:\n\n{_confusion(CONFUSION)}"]
    if found:
        ours = found["metrics"]["valid"]["confusion"]
        tables.append(f"Ours, seed {found['seed']}:\n\n{_confusion(ours)}")
    return "\n\n".join(tables)


def _confusion(counts: Any) -> str:
    rows = []
    for name, line in zip(CLASSES, counts, strict=True):
        recall = line[CLASSES.index(name)] / sum(line)
        rows.append([f"**{name}**", *line, sum(line), f"{recall:.2f}"])
    return markdown.table(("true \\ predicted", *CLASSES, "Images", "Recall"), rows)


# The related work


def related_table(runs: Runs) -> str:
    """Returns tables 1 and 2 under one protocol, with what the study prints beside it."""
    header = (
        *("Network", "Parameters", "MFLOP an image", "Epochs run", "Trained", "On"),
        *("Ours: train", "valid", "test", "Seeds", "The study prints", "which is"),
    )
    rows = []
    for related in RELATED:
        for row in records.by_device(runs.get(related.experiment, [])) or [[]]:
            network = f"{related.work}: {related.network}"
            size = _size(related.experiment)
            printed = (f"{related.printed:.3g}", f"{related.what} (table {related.table})")
            rows.append([network, *size, *_related_cells(row), *printed])
    for name in PAPER:
        for row in records.by_device(runs.get(name, [])) or [[]]:
            printed = (f"{PAPER[name][0]:.3g}", "FER2013, split unsaid (table 5)")
            rows.append([f"**{TITLES[name]}**", *_size(name), *_related_cells(row), *printed])
    return markdown.table(header, rows, text=(4, 5, 11))


def _related_cells(row: list[Record]) -> list[Any]:
    if not row:
        return ["", NOT_MEASURED] + [""] * 5
    epochs = ", ".join(dict.fromkeys(str(r["epochs_run"]) for r in row))
    endings = "; ".join(dict.fromkeys(records.ending(r) for r in row))
    return [epochs, endings, records.devices(row), *_accuracies(row)[:3], len(row)]


@cache
def _size(experiment: str) -> list[str]:
    """Returns parameters, running statistics included, and millions of FLOPs."""
    from fer_jax.models import create_model, summary  # the one thing here that needs the networks

    model = create_model(records.experiment_config(experiment).model)
    return [f"{summary.parameter_counts(model)[0]:,}", f"{summary.flops(model) / 1e6:,.1f}"]


def other_table(runs: Runs) -> str | None:
    """Returns the rows of records that no other table has, None if there are none."""
    known = {*PAPER, *(related.experiment for related in RELATED)}
    header = ("Experiment", "Ours: train", "valid", "test", "Seeds", "Best epoch", "Time", "On")
    rows = [
        [
            *(f"`{name}`", *_accuracies(row)[:3], len(row), _best_epochs(row)),
            *(records.training_time(row), records.devices(row)),
        ]
        for name, found in runs.items()
        if name not in known
        for row in records.by_device(found)
    ]
    return markdown.table(header, rows, text=(5, 7)) if rows else None


@cache
def layers_table(experiment: str) -> str:
    """Returns a network's layers, as in the study's figures 6 to 8."""
    from fer_jax.models import create_model, summary

    model = create_model(records.experiment_config(experiment).model)
    rows = [
        [f"`{row.name}`", row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}"]
        for row in summary.layer_table(model)
    ]
    rows.append(["**all**", "", "", f"**{summary.parameter_counts(model)[0]:,}**"])
    return markdown.table(("Layer", "Kind", "Output shape", "Parameters"), rows, text=(1,))


# Errors


def calibration_table(runs: Runs) -> str:
    """Returns accuracy, confidence and expected calibration error on test."""
    header = ("Network", "Accuracy", "Mean confidence", "Calibration error", "Loss", "Seeds")
    rows = []
    for name, row in main_rows(runs).items():
        outcomes = [records.predictions(found) for found in row]
        confidence = [float(probabilities.max(axis=1).mean()) for _, probabilities in outcomes]
        errors = [statistics.calibration(*outcome).error for outcome in outcomes]
        cells = [over_seeds(row, "test", "accuracy"), records.spread(confidence)]
        cells += [records.spread(errors), over_seeds(row, "test", "loss"), str(len(row))]
        rows.append([row_title(name, row), *cells])
    return markdown.table(header, rows)


def mistakes_table(mistakes: Sequence[dict[str, Any]]) -> str:
    """Returns a network's most confident mistakes; see `figures.mistakes`."""
    rows = [
        [
            *(m["id"], m["true"], m["predicted"]),
            *(f"{m['probabilities'][CLASSES.index(m[who])]:.3f}" for who in ("predicted", "true")),
        ]
        for m in mistakes
    ]
    header = ("Image", "Label", "Taken for", "with probability", "probability of the label")
    return markdown.table(header, rows, text=(1, 2))


def duplicates_table(found: dict[str, Any]) -> str:
    """Returns the copies within each split, from `results/dataset.json`."""
    header = ("Split", "Images", "Groups of equal pixels", "Images in them")
    header += ("Groups with several labels", "Images in those", "Best attainable accuracy")
    rows = [
        [
            *(split, f"{found['dataset']['count'][split]:,}", within["groups"], within["images"]),
            *(within["conflicting_groups"], within["conflicting_images"]),
            f"{within['best_accuracy']:.4f}",
        ]
        for split, within in found["within"].items()
    ]
    return markdown.table(header, rows)


# Which differences mean something


def spread_table(runs: Runs) -> str:
    """Returns the deviation over seeds beside the binomial error of the number of test images."""
    header = ("Network", "Test accuracy", "Seeds", "Deviation over seeds", "Binomial error")
    rows = []
    for name, row in main_rows(runs).items():
        values = [found["metrics"]["test"]["accuracy"] for found in row]
        error = statistics.binomial_error(
            float(np.mean(values)), row[0]["metrics"]["test"]["count"]
        )
        deviation = f"{100 * np.std(values, ddof=1):.2f} points" if len(row) > 1 else "one seed"
        mean = f"{np.mean(values):.3f}"
        cells = [mean, len(row), deviation, f"{100 * error:.2f} points"]
        rows.append([row_title(name, row), *cells])
    return markdown.table(header, rows)


class Pair(NamedTuple):
    """Two networks compared on the test images."""

    better: str  # experiment
    worse: str
    found: statistics.Comparison
    adjusted: float  # p-value, adjusted for all pairs
    agreeing: tuple[int, int]  # pairs of seeds in which the first is better, of how many

    @property
    def differs(self) -> bool:
        """Whether the difference is one at 5 %, all pairs taken together."""
        return self.adjusted < 0.05


def pairs(runs: Runs, names: Sequence[str]) -> list[Pair]:
    """Compares every two of the named networks, the lowest seed of each, on test."""
    right = {name: [records.is_right(r) for r in records.main_row(runs[name])] for name in names}
    both = [
        sorted(pair, key=lambda name: -right[name][0].mean())
        for pair in itertools.combinations(names, 2)
    ]
    found = [statistics.compare(right[a][0], right[b][0]) for a, b in both]
    adjusted = statistics.holm([comparison.p for comparison in found])
    agreeing = [
        [bool(x.mean() > y.mean()) for x, y in itertools.product(right[a], right[b])]
        for a, b in both
    ]
    return [
        Pair(a, b, comparison, p, (sum(agree), len(agree)))
        for (a, b), comparison, p, agree in zip(both, found, adjusted, agreeing, strict=True)
    ]


def pairs_table(found: Sequence[Pair]) -> str:
    """Returns the paired comparisons, largest difference first."""
    header = ("Better here", "than", "Only the better right", "Only the other right")
    header += ("Difference (points)", "95 % interval", "p, McNemar", "p, Holm", "Differ?")
    header += ("Better in seed pairs",)
    rows = [
        [
            *(title(pair.better), title(pair.worse)),
            *(pair.found.only_first, pair.found.only_second),
            f"{100 * pair.found.difference:.2f}",
            " to ".join(f"{100 * end:.2f}" for end in pair.found.interval),
            *(_p_value(pair.found.p), _p_value(pair.adjusted)),
            "yes" if pair.differs else "cannot be told",
            "{} of {}".format(*pair.agreeing),
        ]
        for pair in sorted(found, key=lambda pair: -pair.found.difference)
    ]
    return markdown.table(header, rows, text=(1, 8))


def _p_value(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}"


def main_rows(runs: Runs) -> dict[str, list[Record]]:
    """Returns experiment -> its row, the study's networks first, then tables 1 and 2."""
    names = [*PAPER, *(related.experiment for related in RELATED)]
    return {name: records.main_row(runs[name]) for name in names if runs.get(name)}


def title(experiment: str) -> str:
    """Returns what a network is called in tables and figures."""
    if experiment in TITLES:
        return TITLES[experiment]
    found = next((x for x in RELATED if x.experiment == experiment), None)
    return f"{found.network} ({found.work})" if found else experiment


def row_title(experiment: str, row: list[Record]) -> str:
    """Returns :func:`title`, with the epochs where a network has not been trained to the end."""
    if all(map(records.is_complete, row)):
        return title(experiment)
    epochs = min(found["epochs_run"] for found in row)
    return f"{title(experiment)}, {epochs} epoch{'s' * (epochs > 1)} only"
