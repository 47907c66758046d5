"""Scores anybody's predictions for FER2013 under this project's protocol: `fer-jax score`.

Nothing is chosen by the labels: predictions are scored as they are given, and what looks wrong is
said beside the numbers.
"""

import hashlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import metrics
from fer_jax.apps import predictions
from fer_jax.apps.predictions import Predictions
from fer_jax.data import labels_fer2013
from fer_jax.data.labels_fer2013 import USAGES, Labels
from fer_jax.errors import DataError, ExtraError, RecordError, WorkdirError
from fer_jax.labels import CLASSES, NUM_CLASSES
from fer_jax.report import statistics
from fer_jax.runs import workdir

FORMAT = 1
INTERVAL = "Wilson"  # see `statistics.wilson_interval`

# Orders of the seven classes that others use, by index into CLASSES.
ORDERS = {
    "alphabetical, as the mirror's folders": (0, 1, 2, 3, 6, 4, 5),
    "FER+'s": (6, 3, 5, 4, 0, 1, 2),
    "RAF-DB's": (5, 2, 1, 3, 4, 0, 6),
    "AffectNet's": (6, 3, 4, 5, 2, 1, 0),
}
# Another order of the classes is evident if that many points more are right with it, more are right
# than the largest class has images (0.25), and images are so many that it is no chance.
_GAIN, _LEAST, _IMAGES = 0.1, 0.35, 100
_KNOWN_ORDER = 0.03  # a known order may be so much worse than the best of all 5,040


def score(
    path: Path, csv: Path | None = None, logits: bool = False, partial: bool = False
) -> dict[str, Any]:
    """Scores a file.

    Args:
      path: CSV or Parquet; see :mod:`fer_jax.apps.predictions`.
      csv: the competition's CSV, for a file that names images by its rows.
      logits: take values for logits whatever they look like.
      partial: allow that images of a split are missing.

    Returns:
      JSON-serialisable: `format`, `file` (its name), `sha256`, `kind` (`probabilities`, `logits`
      or `classes`), `notes` (sentences), and `splits`, "valid" or "test" or both ->
      what :func:`score_split` returns, with `comparisons` as :func:`compare` returns them.

    Raises:
      DataError: naming what is wrong with the file.
      ExtraError: if reading it takes a package that is not installed.
    """
    table = predictions.read_table(path)
    columns = predictions.find_columns(table)
    if columns.by_row and csv is None:
        raise DataError(
            f"{path} names images by rows of the competition's CSV, which the mirror's names do "
            "not tell: give that file too, with --csv=fer2013.csv"
        )
    labels = labels_fer2013.read_csv(csv) if csv and columns.by_row else labels_fer2013.read()
    found = predictions.read(table, columns, labels, logits, partial)
    notes = list(found.notes)
    if csv and not columns.by_row:
        notes.append("--csv was not needed: images have the mirror's names")
    records = [] if columns.by_row else _records()
    if columns.by_row:
        notes.append("no paired tests: the records here are of the mirror, whose rows are unknown")
    elif not records:
        notes.append("no paired tests: the records to compare with are in the repository")
    splits = {
        split: score_split(labels[split], these)
        | {"comparisons": compare(split, labels[split], these, records)}
        for split, these in found.splits.items()
    }
    return {
        "format": FORMAT,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "kind": found.kind,
        "notes": notes,
        "splits": splits,
    }


def score_split(labels: Labels, found: Predictions) -> dict[str, Any]:
    """Measures predictions for a split.

    Args:
      labels: of the whole split.
      found: predictions for all or some of its images.

    Returns:
      As :func:`fer_jax.metrics.of_split`, and `images` (how many the split has);
      `accuracy_interval` and `accuracy_unique_interval`, 95 % by Wilson's method; `calibration`
      with `error` (ECE), `mean_confidence`, and by bin of confidence `count`, `confidence` and
      `accuracy`; `other_order`, None or an order of the classes that evidently fits better, with
      `name`, `classes` and `accuracy`. `loss` is None where a label has probability 0;
      it and `calibration` are None where there are only classes.
    """
    true, in_train = labels.labels[found.index], labels.in_train[found.index]
    result = metrics.of_split(true, in_train, np.eye(NUM_CLASSES)[found.classes])
    right = found.classes == true
    result |= {
        "images": len(labels.ids),
        "accuracy_interval": statistics.wilson_interval(int(right.sum()), len(right)),
        "accuracy_unique_interval": None,
        "loss": None,
        "calibration": None,
        "other_order": _other_order(np.array(result["confusion"])),
    }
    if result["count_unique"]:
        hits = int(right[~in_train].sum())
        interval = statistics.wilson_interval(hits, result["count_unique"])
        result["accuracy_unique_interval"] = interval
    if found.log_probs is not None:
        loss = -found.log_probs[np.arange(len(true)), true].mean()
        result["loss"] = float(loss) if np.isfinite(loss) else None
        result["calibration"] = _calibration(true, np.exp(found.log_probs))
    return result


def _calibration(true: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    bins = statistics.calibration(true, probabilities)
    return {
        "error": bins.error,
        "mean_confidence": float(probabilities.max(axis=1).mean()),
        "count": bins.count.tolist(),
        "confidence": [None if np.isnan(x) else float(x) for x in bins.confidence],
        "accuracy": [None if np.isnan(x) else float(x) for x in bins.accuracy],
    }


def _other_order(confusion: np.ndarray) -> dict[str, Any] | None:
    """Returns the order of classes that evidently fits better than the labels' order, or None.

    Args:
      confusion: `[7, 7]` images by (label, predicted class).
    """
    count, given = confusion.sum(), np.trace(confusion)
    orders = np.array(list(itertools.permutations(range(NUM_CLASSES))))  # [5040, 7]
    hits = confusion[orders, np.arange(NUM_CLASSES)].sum(axis=1)
    order, best, name = orders[hits.argmax()], int(hits.max()), "none that is known here"
    known = {n: int(confusion[o, np.arange(NUM_CLASSES)].sum()) for n, o in ORDERS.items()}
    likeliest = max(known, key=lambda n: known[n])
    if known[likeliest] >= best - _KNOWN_ORDER * count:
        order, best, name = ORDERS[likeliest], known[likeliest], likeliest
    if count < _IMAGES or best < _LEAST * count or best - given < _GAIN * count:
        return None
    return {
        "name": name,
        "classes": [CLASSES[label] for label in order],
        "accuracy": float(best / count),
    }


# Records


def _records() -> list[dict[str, Any]]:
    """Returns the repository's records of the JPEG mirror; none in an installed package."""
    from fer_jax.report.records import load_runs
    from fer_jax.study.plan import RUNS

    return [
        found
        for row in load_runs(RUNS).values()
        for found in row
        if found["dataset"]["kind"] == "jpeg"
    ]


def compare(
    split: str, labels: Labels, found: Predictions, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Compares predictions with those of records, image by image.

    Args:
      split: "valid" or "test".
      labels: of the whole split.
      found: predictions for all or some of its images.
      records: of runs on the JPEG mirror; one without predictions for this split is left out.

    Returns:
      For each record, most accurate first: `experiment`, `seed` and the `platform` it ran on
      (`cpu`, `gpu`); its `accuracy` on the same images; images that `only_these` predictions, or
      `only_record`, get right; `difference` of the accuracies with its 95 % `interval` (Wald's for
      pairs); `p` of McNemar's exact test, and
      `p_holm`, adjusted for the number of records.

    Raises:
      RecordError: if a record is of other labels.
    """
    from fer_jax.runs.record import decode_predictions

    right = found.classes == labels.labels[found.index]
    rows = []
    for record in records:
        if split not in record["predictions"]:
            continue
        true, probabilities = decode_predictions(record["predictions"][split])
        if not np.array_equal(true, labels.labels):
            raise RecordError(f"the record of {record['experiment']} has other labels of {split}")
        theirs = (probabilities.argmax(axis=1) == true)[found.index]
        pair = statistics.compare(right, theirs)
        rows.append(
            {
                "experiment": record["experiment"],
                "seed": record["seed"],
                "platform": record["device"]["platform"],
                "accuracy": float(theirs.mean()),
                "only_these": pair.only_first,
                "only_record": pair.only_second,
                "difference": pair.difference,
                "interval": pair.interval,
                "p": pair.p,
            }
        )
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return sorted(rows, key=lambda row: -row["accuracy"])


# What people read


def to_text(scored: Mapping[str, Any]) -> str:
    """Formats what :func:`score` returns for a terminal."""
    lines = [f"{scored['file']}: {scored['kind']}, SHA-256 {scored['sha256'][:12]}..."]
    lines += [f"  note: {note}" for note in scored["notes"]]
    for split, result in scored["splits"].items():
        lines += ["", *_lines(split, result)]
    return "\n".join(lines)


def title(split: str, result: Mapping[str, Any]) -> str:
    """Names a split, and says of how many of its images the numbers are."""
    count, images = result["count"], result["images"]
    if count == images:
        return f"{USAGES[split]} ({split}), all {images:,} images"
    return f"{USAGES[split]} ({split}), ONLY {count:,} of {images:,} images"


def _lines(split: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield title(split, result)
    if split == "valid":
        yield "  What was chosen on PublicTest is flattered by it; a claim is about PrivateTest."
    yield from _warnings(result)
    yield _measure("accuracy", result["accuracy"], _interval(result["accuracy_interval"]))
    if result["accuracy_unique_interval"]:
        where = f"on {result['count_unique']:,} images"
        interval = _interval(result["accuracy_unique_interval"], where)
        yield _measure("  without copies", result["accuracy_unique"], interval)
        yield "  (copies are images whose pixels also stand in Training)"
    remark = "no substitute for accuracy: 1 - 2 (1 - accuracy) / 7"
    yield _measure("equation (3), one-vs-rest", result["one_vs_rest_accuracy"], remark)
    yield _measure("macro-F1", result["macro_f1"])
    if calibration := result["calibration"]:
        if result["loss"] is None:
            yield f"  {'loss (nats)':28}infinite: a label has probability 0"
        else:
            yield _measure("loss (nats)", result["loss"])
        remark = f"mean confidence {calibration['mean_confidence']:.4f}"
        yield _measure(f"ECE, {len(calibration['count'])} bins", calibration["error"], remark)
    yield ""
    yield f"  {'label':10}{'recall':>7}   images by predicted class"
    yield " " * 22 + "".join(f"{name:>10}" for name in CLASSES)
    for name, row in zip(CLASSES, result["confusion"], strict=True):
        recall = result["recall"][name]
        shown = "-" if recall is None else f"{recall:.3f}"
        yield f"  {name:10}{shown:>7}   " + "".join(f"{n:>10}" for n in row)
    if result["comparisons"]:
        yield ""
        yield from _comparison_lines(result["comparisons"])


def _warnings(result: Mapping[str, Any]) -> Iterator[str]:
    if other := result["other_order"]:
        yield (
            f"  WARNING: in another order of the classes {other['accuracy']:.4f} would be right, "
            f"instead of {result['accuracy']:.4f}:"
        )
        yield f"  {', '.join(other['classes'])} ({other['name']})."
        yield "  If that is the file's, call columns or classes by name."
    if result["accuracy"] == 1:
        yield "  WARNING: every prediction is the label; is that the column of predictions?"


def _measure(name: str, value: float, remark: str = "") -> str:
    return f"  {name:28}{value:.4f}   {remark}".rstrip()


def _interval(ends: Sequence[float], where: str = "") -> str:
    return f"95 %: {ends[0]:.4f} to {ends[1]:.4f} ({INTERVAL}) {where}"


def _comparison_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "  Against this repository's records, image by image (McNemar's exact test; p adjusted"
    yield f"  for {len(rows)} by Holm); points are accuracy above theirs"
    yield f"  {'record':34}{'accuracy':>9}{'points':>9}   {'95 %':18}{'p':>8}{'p, Holm':>10}"
    for row in rows:
        low, high = (f"{100 * end:+.2f}" for end in row["interval"])
        p, adjusted = (
            "<0.0001" if row[key] < 1e-4 else f"{row[key]:.4f}" for key in ("p", "p_holm")
        )
        yield (
            f"  {_record_name(row):34}{row['accuracy']:>9.4f}"
            f"{100 * row['difference']:>+9.2f}   {low + ' to ' + high:18}{p:>8}{adjusted:>10}"
        )


def _record_name(row: Mapping[str, Any]) -> str:
    on = "" if row["platform"] == "cpu" else f", {row['platform'].upper()}"
    return f"{row['experiment']}, seed {row['seed']}{on}"


def write_json(scored: Mapping[str, Any], path: Path) -> None:
    """Writes what :func:`score` returns.

    Raises:
      RecordError: if it cannot be written.
    """
    _write(path, (workdir.to_json(scored) + "\n").encode())


def draw(scored: Mapping[str, Any], path: Path) -> None:
    """Draws the confusion matrix of each split, and beside it calibration or recall.

    Args:
      scored: what :func:`score` returned.
      path: ends in `.png`, `.pdf` or `.svg`.

    Raises:
      DataError: if it has another ending.
      ExtraError: if matplotlib is not installed.
      RecordError: if it cannot be written.
    """
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise DataError(f"--picture={path}: it ends in .png, .pdf or .svg")
    try:
        from fer_jax.runs import plots

        splits = scored["splits"]
        figure = plots.create_figure(11, 5.2 * len(splits))
    except ImportError as error:
        raise ExtraError(
            f"a picture needs matplotlib: pip install 'fer-jax[report]' ({error})"
        ) from error
    panels = figure.subplots(len(splits), 2, squeeze=False, width_ratios=[1.25, 1])
    for (left, right), (split, result) in zip(panels, splits.items(), strict=True):
        plots.draw_confusion_matrix(left, result["confusion"], CLASSES)
        left.set_title(f"{title(split, result)}\naccuracy {result['accuracy']:.4f}", fontsize=10)
        if result["calibration"]:
            _draw_calibration(right, result["calibration"])
        else:
            _draw_recall(right, result["recall"])
    figure.suptitle(scored["file"])
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:].lower())
    _write(path, data.getvalue())


def _draw_calibration(axes: Any, calibration: Mapping[str, Any]) -> None:
    there = [k for k, count in enumerate(calibration["count"]) if count]
    points = ([calibration[key][k] for k in there] for key in ("confidence", "accuracy"))
    shares = np.array(calibration["count"]) / sum(calibration["count"])
    width = 1 / len(shares)
    middles = (np.arange(len(shares)) + 0.5) * width
    axes.bar(middles, shares, width, color="#CCCCCC", label="share of images")
    axes.plot([0, 1], [0, 1], "--", color="#666666", label="perfectly calibrated")
    axes.plot(*points, color="#0072B2", marker="o", label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence (largest probability)")
    axes.set_title(f"expected calibration error {calibration['error']:.3f}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)


def _draw_recall(axes: Any, recall: Mapping[str, float | None]) -> None:
    axes.barh(list(recall), [value or 0 for value in recall.values()], color="#0072B2")
    axes.set(xlim=(0, 1), xlabel="recall")
    axes.invert_yaxis()


def _write(path: Path, data: bytes) -> None:
    try:
        workdir.write_bytes(path, data)
    except WorkdirError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise RecordError(f"cannot write {path}: {reason}") from error
