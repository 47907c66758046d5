"""Tables made from records, as Markdown; nothing in them is typed by hand."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fer_jax.config import changed_fields
from fer_jax.errors import RecordError
from fer_jax.labels import CLASSES
from fer_jax.report import markdown, records, statistics
from fer_jax.report.paper import CONFUSION, PAPER, RELATED, TITLES
from fer_jax.report.records import MISSING, NOT_MEASURED, Record, Runs, over_seeds

# The paper's own networks

_TEST = (("test", "accuracy"), ("test", "accuracy_unique"))
_ALL = (("train", "accuracy"), ("valid", "accuracy"), *_TEST)
# What goes past the paper: experiment -> title.
RECIPES = {
    "arch03_strong": "Architecture 03, recipe of Compact",
    "mini_xception_strong": "mini-XCEPTION, recipe of Compact",
    "fully_cnn_strong": "sequential fully-CNN, recipe and dropout of Compact",
    "compact": "Compact",
    "compact_muon_strong": "Compact, Muon, strong augmentation",
    "compact_distilled": "Compact, distilled",
    "compact_distilled_light": "Compact, distilled, light augmentation",
    "compact_ensemble": "Compact, ensemble",
    "compact_muon_ensemble": "Compact, Muon, strong augmentation, ensemble",
    "record": "ResNet-18",
}
type _Columns = Sequence[tuple[str, str]]  # (split, metric)


def _headings(columns: _Columns) -> list[str]:
    return [records.heading(split, metric) for split, metric in columns]


def _measured(row: list[Record], columns: _Columns) -> list[str]:
    return [over_seeds(row, split, metric) for split, metric in columns]


def _table_of_rows(
    header: Sequence[str],
    rows: Sequence[tuple[list[Any], list[Record]]],
    missing: Sequence[str],
    text: Sequence[int] = (),
) -> str:
    """Formats rows made of records.

    What all of them ran on stands once, below the table; else in a last column. What has no record
    is named below.

    Args:
      header: the columns' headings.
      rows: cells, and the records they are made of.
      missing: titles of rows that have no record.
      text: as :func:`markdown.table` takes it.
    """
    where = [records.devices(of) for _, of in rows]
    shared = len(set(where)) == 1
    cells = [row if shared else [*row, on] for (row, _), on in zip(rows, where, strict=True)]
    parts = []
    if rows:
        names = header if shared else [*header, "On"]
        parts.append(markdown.table(names, cells, text=(*text, len(header))))
    if shared:
        parts.append(f"Run on: {where[0]}.")
    if missing:
        parts.append(f"{', '.join(dict.fromkeys(missing))}: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def _paper_rows(runs: Runs) -> list[tuple[str, list[Record]]]:
    """Returns experiment and row, one for each device."""
    return [(name, row) for name in PAPER for row in records.by_device(runs.get(name, []))]


def _without_record(runs: Runs) -> list[str]:
    return [title(name) for name in PAPER if not runs.get(name)]


def paper_table(runs: Runs) -> str:
    """Returns the paper's rows beside ours and the best record, short enough for the README."""
    header = ("Network", *_headings(_ALL), "Seeds", "Training", "Paper", "Paper's time")
    rows = []
    for name in PAPER:
        accuracy, _, hours = PAPER[name]
        if row := records.main_row(runs.get(name, [])):
            cells = [title(name), *_measured(row, _ALL), len(row), records.training_time(row)]
            rows.append(([*cells, f"{accuracy:.3g}", f"{hours} h"], row))
    best = best_on_valid(runs)
    if best and best not in PAPER:
        row = records.main_row(runs[best])
        cells = [f"Best on valid: {title(best)}", *_measured(row, _ALL), len(row)]
        rows.append(([*cells, records.training_time(row), MISSING, MISSING], row))
    return _table_of_rows(header, rows, _without_record(runs))


def best_on_valid(runs: Runs) -> str | None:
    """Returns the experiment with the best mean valid accuracy; test does not choose."""
    rows = {name: records.main_row(found) for name, found in complete(runs).items()}
    means = {
        name: np.mean([found["metrics"]["valid"]["accuracy"] for found in row])
        for name, row in rows.items()
    }
    return max(means, key=lambda name: means[name], default=None)


def accuracy_table(runs: Runs) -> str:
    """Returns table 5's accuracy and loss beside ours on every split."""
    columns = (*_ALL, ("test", "loss"))
    header = ("Network", *_headings(columns), "Seeds", "Paper", "Paper's loss")
    rows = []
    for name in PAPER:
        if row := records.main_row(runs.get(name, [])):
            printed = [f"{x:.3g}" for x in PAPER[name][:2]]
            rows.append(([title(name), *_measured(row, columns), len(row), *printed], row))
    return _table_of_rows(header, rows, _without_record(runs))


def metrics_table(runs: Runs) -> str:
    """Returns equation (3), macro-F1 and losses of the paper's networks."""
    columns = [("test", name) for name in ("accuracy", "one_vs_rest_accuracy", "macro_f1")]
    columns += [("train", "loss"), ("valid", "loss")]
    rows = [
        ([title(name), *_measured(row, columns)], row)
        for name in PAPER
        if (row := records.main_row(runs.get(name, [])))
    ]
    return _table_of_rows(("Network", *_headings(columns)), rows, _without_record(runs))


def recipes_table(runs: Runs) -> str:
    """Returns what goes past the paper in full: with and without copies, views and seeds."""
    metrics = ("accuracy", "accuracy_unique", "macro_f1")
    header = ["Network", "valid", *(records.heading("test", name) for name in metrics)]
    header += [f"{records.heading('test', name)}, views" for name in metrics]
    rows = []
    for name, row in main_rows(runs).items():
        if name in RECIPES:
            cells = [over_seeds(row, "valid", "accuracy")]
            cells += [over_seeds(row, "test", metric) for metric in metrics]
            cells += [records.over_views(row, "test", metric) for metric in metrics]
            rows.append([title(name), *cells, str(len(row))])
    return _table_or_not([*header, "Seeds"], rows)


def time_table(runs: Runs) -> str:
    """Returns table 5's hours beside our training times, a row for each device."""
    rows = [
        (
            [
                *(title(name), records.training_time(row), f"{PAPER[name][2]} h"),
                *(records.best_epochs(row), len(row)),
            ],
            row,
        )
        for name, row in _paper_rows(runs)
    ]
    header = ("Network", "Ours", "Paper's", "Best epoch", "Seeds")
    return _table_of_rows(header, rows, _without_record(runs))


def crossing_table(runs: Runs) -> str:
    """Returns where our running training curve passes the paper's accuracy, for every seed."""
    header = (
        *("Experiment", "Paper's accuracy, loss", "Ours passes it after epoch"),
        *("loss where it passes", "running train accuracy, loss then"),
        *("the same without dropout", "valid accuracy, loss then", "best valid accuracy"),
    )
    rows = []
    for name, row in _paper_rows(runs):
        accuracy, loss, _ = PAPER[name]
        for found in row:
            best = max(epoch["valid/accuracy"] for epoch in found["history"])
            printed = f"{accuracy:.3g}, {loss:.3g}"
            cells = [printed, *_crossing_cells(found, accuracy), f"{best:.3f}"]
            rows.append(([f"`{name}`, seed {found['seed']}", *cells], [found]))
    return _table_of_rows(header, rows, _without_record(runs))


def _crossing_cells(found: Record, accuracy: float) -> list[str]:
    row = statistics.crossing(found["history"], accuracy)
    if row is None:
        return [f"not within {found['epochs_run']} epochs", *[MISSING] * 4]
    loss = statistics.loss_at(found["history"], accuracy)
    pairs = [
        f"{row[f'{curve}/accuracy']:.3f}, {row[f'{curve}/loss']:.3f}"
        if f"{curve}/loss" in row
        else MISSING
        for curve in ("train_running", "train", "valid")
    ]
    return [str(row["epoch"]), MISSING if loss is None else f"{loss:.3f}", *pairs]


def confusion_tables(found: Record | None) -> str:
    """Returns table 3's matrix and, below it, ours on the same split (valid)."""
    tables = [f"The paper's:\n\n{_confusion(CONFUSION)}"]
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


def related_table(runs: Runs, imported: Sequence[Record] = ()) -> str:
    """Returns tables 1 and 2 under one protocol, with what the paper prints beside it.

    Args:
      runs: all there are; what was not trained to the end gets a sentence below the table.
      imported: records of published weights, from `fer_jax.study.imported`.
    """
    columns = _ALL[:3]
    header = ("Network", *_headings(columns), "Seeds", "Paper", "Epochs", "Parameters")
    header += ("MFLOP an image", "Trained", "The paper's accuracy is on")
    rows, missing, whole = [], [], complete(runs)
    for related in RELATED:
        printed = f"{related.printed:.3g}", f"{related.what} (table {related.table})"
        name = f"{related.work}: {related.network}"
        rows += _related_rows(whole, related.experiment, name, printed)
        rows += _imported_rows(imported, related.experiment, name, printed)
        missing += [] if runs.get(related.experiment) else [name]
    for name in PAPER:
        printed = f"{PAPER[name][0]:.3g}", "FER2013, split unsaid (table 5)"
        rows += _related_rows(whole, name, f"**{TITLES[name]}**", printed)
    parts = [
        _table_of_rows(header, rows, [*missing, *_without_record(runs)], text=(9, 10)),
        *_unfinished(runs),
    ]
    return "\n\n".join(parts)


def _related_rows(
    runs: Runs, experiment: str, name: str, printed: tuple[str, str]
) -> list[tuple[list[Any], list[Record]]]:
    rows = []
    for row in records.by_device(runs.get(experiment, [])):
        epochs = ", ".join(dict.fromkeys(str(r["epochs_run"]) for r in row))
        endings = "; ".join(dict.fromkeys(records.ending(r) for r in row))
        cells = [name, *_measured(row, _ALL[:3]), len(row), printed[0], epochs]
        rows.append(([*cells, *size_cells(experiment), endings, printed[1]], row))
    return rows


def _imported_rows(
    imported: Sequence[Record], experiment: str, name: str, printed: tuple[str, str]
) -> list[tuple[list[Any], list[Record]]]:
    rows = []
    for found in imported:
        if found["experiment"] == experiment:
            tested = [f"{found['metrics'][split]['accuracy']:.3f}" for split in ("valid", "test")]
            cells = [f"{name}, weights as published", MISSING, *tested, MISSING, printed[0]]
            cells += [MISSING, *size_cells(experiment), records.ending(found), printed[1]]
            rows.append((cells, [found]))
    return rows


def _unfinished(runs: Runs) -> list[str]:
    """Returns a sentence on what was not trained to the end, if there is any."""
    found = [one for row in runs.values() for one in row if not records.is_complete(one)]
    if not found:
        return []
    told = "; ".join(map(_how_far, found))
    return [f"Not trained to the end, and so in no other table, figure or test: {told}."]


def _how_far(found: Record) -> str:
    planned, valid = records.planned_epochs(found), found["metrics"]["valid"]["accuracy"]
    return (
        f"{title(found['experiment'])} ({found['epochs_run']} of {planned} epochs, valid "
        f"{valid:.3f}; all of them would take about {_whole_minutes(found):,.0f} core minutes)"
    )


def _whole_minutes(found: Record) -> float:
    """Returns the core minutes that all epochs would take at the pace of those that were run."""
    seconds = found["seconds"]
    used = seconds.get("train_cpu", seconds["train"] * found["device"]["cpu_cores"])
    return used / found["epochs_run"] * records.planned_epochs(found) / 60


def complete(runs: Runs) -> Runs:
    """Returns the runs that were trained to the end, without experiments that have none."""
    whole = {name: list(filter(records.is_complete, found)) for name, found in runs.items()}
    return {name: found for name, found in whole.items() if found}


def _network(experiment: str) -> Any:
    from fer_jax.models import create_model  # the networks take a while to import

    config = records.experiment_config(experiment)
    if config is None:
        raise RecordError(
            f"there is no experiments/{experiment}.py, which would say what network the record of "
            f"{experiment} is of"
        )
    return create_model(config.model)


@cache
def size(experiment: str) -> tuple[int, int]:
    """Returns a network's parameters, running statistics included, and its FLOPs an image.

    Raises:
      RecordError: if no file in `experiments/` says which network that is.
    """
    from fer_jax.models import summary

    model = _network(experiment)
    return summary.parameter_counts(model)[0], summary.flops(model)


def size_cells(experiment: str, networks: int = 1) -> list[str]:
    """Returns cells: parameters and millions of FLOPs an image of so many like networks."""
    parameters, flops = size(experiment)
    return [f"{networks * parameters:,}", f"{networks * flops / 1e6:,.1f}"]


def other_table(runs: Runs) -> str:
    """Returns the rows of records that no other table has."""
    known = {*PAPER, *(related.experiment for related in RELATED), *RECIPES}
    header = ("Experiment", *_headings(_ALL), "Seeds", "Best epoch", "Training")
    rows = [
        (
            [
                *(f"`{name}`", *_measured(row, _ALL), len(row)),
                *(records.best_epochs(row), records.training_time(row)),
            ],
            row,
        )
        for name, found in runs.items()
        if name not in known
        for row in records.by_device(found)
    ]
    return _table_of_rows(header, rows, []) or "None."


def precision_table(runs: Runs) -> str:
    """Returns what bfloat16 changes on a CPU, seed by seed: experiments that there are twice.

    Runs whose configurations differ in anything else that changes numbers are no pair.
    """
    header = (
        "Network",
        "Seeds",
        "valid, float32",
        "valid, bfloat16",
        "Difference",
        "95 % interval",
    )
    rows = []
    for name, found in runs.items():
        rounded = {r["seed"]: r for r in found if r.get("convolutions") == "native bfloat16"}
        exact = {
            r["seed"]: r
            for r in runs.get(name.removesuffix("_bfloat16"), [])
            if r.get("convolutions") == "native"
        }
        seeds = [
            seed
            for seed in sorted(rounded.keys() & exact.keys())
            if changed_fields(rounded[seed]["config"], exact[seed]["config"]).keys()
            <= {"experiment", "model.dtype"}
        ]
        if len(seeds) < 2:
            continue
        before, after = (
            [of[seed]["metrics"]["valid"]["accuracy"] for seed in seeds] for of in (exact, rounded)
        )
        differences = [100 * (b - a) for a, b in zip(before, after, strict=True)]
        low, high = statistics.mean_interval(differences)
        rows.append(
            [
                *(title(name.removesuffix("_bfloat16")), len(seeds)),
                *(records.spread(before), records.spread(after)),
                *(f"{np.mean(differences):+.2f} points", f"{low:+.2f} to {high:+.2f}"),
            ]
        )
    return _table_or_not(header, rows)


@cache
def layers_table(experiment: str) -> str:
    """Returns a network's layers, as in the paper's figures 6 to 8."""
    from fer_jax.models import summary

    model = _network(experiment)
    rows = [
        [f"`{row.name}`", row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}"]
        for row in summary.layer_table(model)
    ]
    rows.append(["**all**", "", "", f"**{summary.parameter_counts(model)[0]:,}**"])
    return markdown.table(("Layer", "Kind", "Output shape", "Parameters"), rows, text=(1,))


# Errors


def _table_or_not(header: Sequence[str], rows: Sequence[Any], text: Sequence[int] = ()) -> str:
    return markdown.table(header, rows, text) if rows else f"{NOT_MEASURED.capitalize()}."


def calibration_table(runs: Runs) -> str:
    """Returns accuracy, confidence and expected calibration error on test, the latter also after
    temperature scaling, fitted on valid."""
    header = ("Network", "Accuracy", "Mean confidence", "Calibration error", "Temperature")
    header += ("Error after scaling", "Loss", "Seeds")
    rows = []
    for name, row in main_rows(runs).items():
        outcomes = [records.predictions(found) for found in row]
        confidence = [float(probabilities.max(axis=1).mean()) for _, probabilities in outcomes]
        errors = [statistics.calibration(*outcome).error for outcome in outcomes]
        cells = [over_seeds(row, "test", "accuracy"), records.spread(confidence)]
        cells += [records.spread(errors), *_scaled_cells(row)]
        cells += [over_seeds(row, "test", "loss"), str(len(row))]
        rows.append([title(name), *cells])
    return _table_or_not(header, rows)


def _scaled_cells(row: list[Record]) -> list[str]:
    """Returns temperatures fitted on valid, and the calibration error on test with them."""
    if not all("valid" in found["predictions"] for found in row):
        return [MISSING, MISSING]
    fitted = [statistics.temperature(*records.predictions(found, "valid")) for found in row]
    errors = []
    for found, temperature in zip(row, fitted, strict=True):
        labels, probabilities = records.predictions(found)
        scaled = statistics.scale(probabilities, temperature)
        errors.append(statistics.calibration(labels, scaled).error)
    return [records.spread(fitted), records.spread(errors)]


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
    return _table_or_not(header, rows, text=(1, 2))


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
    return _table_or_not(header, rows)


def copies_table(found: dict[str, Any]) -> str:
    """Returns the copies between two splits, from `results/dataset.json`."""
    rows = [
        [
            *(names, n["images"], n["contradicted"]),
            f"{100 * n['contradicted'] / n['images']:.1f} %",
        ]
        for names, n in found["between"].items()
    ]
    header = ("Two splits", "Images of the second with a copy in the first")
    return markdown.table((*header, "Label that no copy has", "Share"), rows)


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
        rows.append([title(name), *cells])
    return _table_or_not(header, rows)


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
    return _table_or_not(header, rows, text=(1, 8))


def _p_value(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}"


def main_rows(runs: Runs) -> dict[str, list[Record]]:
    """Returns experiment -> its row, of those trained to the end: the paper's networks, then those
    of tables 1 and 2, then :data:`RECIPES`."""
    known = [*PAPER, *(related.experiment for related in RELATED)]
    whole = complete(runs)
    names = [*known, *RECIPES]
    return {name: records.main_row(whole[name]) for name in names if whole.get(name)}


def title(experiment: str) -> str:
    """Returns what a network is called in tables and figures."""
    if own := (TITLES | RECIPES).get(experiment):
        return own
    found = next((x for x in RELATED if x.experiment == experiment), None)
    return f"{found.network} ({found.work})" if found else experiment


def published_title(found: Record) -> str:
    """Returns what published weights are called there, and on what images they were chosen."""
    return f"{title(found['experiment'])}, published weights (chosen on {found['chosen_on']})"
