"""Sentences computed from records."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from fer_jax.report import records, statistics, tables
from fer_jax.report.paper import CONFUSION, PAPER, RELATED, TITLES
from fer_jax.report.records import NOT_MEASURED, Record, Runs

BEST_RELATED = 3  # networks of the related work that are compared with the paper's, pair by pair


def lowest(runs: Runs, name: str) -> Record | None:
    """Returns the record that stands for a network where one run is shown: its lowest seed."""
    return next(iter(records.main_row(runs.get(name, []))), None)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _tested(row: list[Record]) -> float:
    return fmean([found["metrics"]["test"]["accuracy"] for found in row])


def verdict(runs: Runs) -> str:
    """Returns what the paper's numbers are, how good ours are, and which is best: the README's."""
    measured = [name for name in PAPER if runs.get(name)]
    best = tables.best_on_valid(runs)
    if not measured or best is None:
        return f"The paper's networks: {NOT_MEASURED}."
    right = sum(line[i] for i, line in enumerate(CONFUSION)) / sum(map(sum, CONFUSION))
    passing = [name for name in measured if _passed(runs, name)]
    printed = [accuracy for accuracy, *_ in PAPER.values()]
    held_out = _best_valid(runs, measured)
    tested = [_tested(records.main_row(runs[name])) for name in measured]
    row = records.main_row(runs[best])
    valid = fmean([found["metrics"]["valid"]["accuracy"] for found in row])
    return (
        "- **The paper's accuracies look like those of training images**: in "
        f"{len(passing)} of {len(measured)} networks the running training accuracy, as Keras "
        f"prints it, comes to the paper's ({min(printed):.3g} to {max(printed):.3g}), while on "
        f"PublicTest {held_out:.3f} is the best of all epochs, and the paper's own confusion "
        f"matrix, which is on PublicTest, has {right:.3f} right.\n- **Held out, the same "
        f"networks reach {_range(tested)}** on PrivateTest: people agree with the labels about "
        "0.65 of the time (Goodfellow et al. 2013), and the best networks trained from scratch are "
        "published at about 0.73 (Pramerdorfer & Kampel 2016).\n- **The best record "
        f"here**, chosen on PublicTest ({valid:.3f}), is {tables.title(best)}, with "
        f"**{_tested(row):.3f}** on PrivateTest (`experiments/{best}.py`)."
    )


def _best_valid(runs: Runs, names: Sequence[str]) -> float:
    return max(row["valid/accuracy"] for n in names for r in runs[n] for row in r["history"])


def _passed(runs: Runs, name: str) -> bool:
    return any(statistics.crossing(found["history"], PAPER[name][0]) for found in runs[name])


def in_short(runs: Runs) -> str:
    """Returns the page's summary."""
    measured = [name for name in PAPER if runs.get(name)]
    if not measured:
        return f"In short: {NOT_MEASURED}."
    passing = sum(_passed(runs, name) for name in measured)
    best = _best_valid(runs, measured)
    least = min(PAPER[name][0] for name in PAPER)
    tested = [_tested(records.main_row(runs[name])) for name in measured]
    return (
        f"**In short.** Of the paper's four networks {len(measured)} have a record here, and in "
        f"{passing} of these the *running training* accuracy reaches the paper's figure in the "
        "epochs run. On images that a network was not fitted on, valid accuracy is "
        f"{best:.3f} at best over all epochs of all their runs; the paper's lowest figure is "
        f"{least:.3g}. On test the networks reach {_range(tested)}."
    )


def table_2(runs: Runs, imported: Sequence[Record]) -> str:
    """Says what the accuracies of the paper's table 2, on FER2013, are worth."""
    rows = tables.main_rows(runs)
    printed = {r.experiment: r.printed for r in RELATED if r.table == 2}
    trained = {name: _tested(rows[name]) for name in printed if name in rows}
    if not trained:
        return f"What table 2 is worth: {NOT_MEASURED}."
    reached = sum(test >= printed[name] for name, test in trained.items())
    nearest = min(trained, key=lambda name: printed[name] - trained[name])
    given = ""
    if imported:
        best = max(imported, key=lambda found: found["metrics"]["test"]["accuracy"])
        given = (
            f": the published mini-XCEPTION weights give {_tested([best]):.3f} on test, but were "
            f"chosen on {best['chosen_on']}"
        )
    return (
        f"**What table 2 is worth.** Of its {len(printed)} networks {len(trained)} were trained to "
        f"the end here, and {reached or 'none'} of them reaches the printed accuracy on test; "
        f"nearest is {tables.title(nearest)}, {trained[nearest]:.3f} where {printed[nearest]:.2f} "
        "is printed. What the figures up to 0.66 would be on images that chose nothing is open"
        f"{given}. Those from 0.82 on lie above all that is published for PrivateTest (about 0.73 "
        "from scratch), and where it is known what they are, they are of training images "
        "(Serengil's) or of another task (Giannopoulos's)."
    )


def openings(
    runs: Runs,
    studied: Sequence[int] = (),
    replaced: Sequence[int] = (),
    shipped: Sequence[int] = (),
) -> str:
    """Says how often test was opened.

    Args:
      runs: all that stand in the tables; each opened test once.
      studied: of each run of the factor study, how often it did.
      replaced: likewise of each run whose place in the tables another one took.
      shipped: likewise of each run whose weights are shipped and whose record is not kept.
    """
    found = [one for row in runs.values() for one in row]
    members = sum("members" in one for one in found)
    trained = len(found) - members
    averaged = f" and {members} ensemble{'s' * (members > 1)}" if members else ""
    study = f", and {sum(studied)} times for the {len(studied)} runs of the factor study"
    others = (
        f", and {sum(replaced)} time{'s' * (sum(replaced) > 1)} for what stands in "
        "`results/replaced`, runs that others took the place of"
    )
    weights = (
        f", and {sum(shipped)} time{'s' * (sum(shipped) > 1)} for shipped weights whose runs are "
        "in no table"
    )
    total = len(found) + sum(studied) + sum(replaced) + sum(shipped)
    return (
        f"Test was opened {total} times in all, once for each of {trained} records of runs"
        f"{averaged}{study if studied else ''}{others if replaced else ''}"
        f"{weights if shipped else ''}; published weights, and ONNX files of shipped "
        "ones (`results/kernels.json`), are measured on it as they are. Recipes, seeds and "
        "checkpoints are chosen on valid; the studies of Compact's recipe do not open test."
    )


def crossing(runs: Runs) -> str:
    """Returns a line for each network: where its running training curve passes the paper's pair."""
    lines = []
    for name in PAPER:
        if not runs.get(name):
            continue
        accuracy, loss, _ = PAPER[name]
        losses = [statistics.loss_at(found["history"], accuracy) for found in runs[name]]
        losses = [passed for passed in losses if passed is not None]
        best = max(row["valid/accuracy"] for found in runs[name] for row in found["history"])
        reached = f"does not reach accuracy {accuracy:.3g} in the epochs run"
        if losses:
            passed_at = f"passes accuracy {accuracy:.3g} at a loss of {_range(losses)}"
            reached = f"{passed_at} (the paper: {loss:.3g})"
        lines.append(
            f"* {TITLES[name]}: our running training curve {reached}; valid stands at {best:.3f} "
            "at best."
        )
    return "\n".join(lines)


def shared_mistakes(runs: Runs) -> str:
    """Says on how many test images the paper's networks agree on a class that is not the label."""
    found = [r for name in PAPER if (r := lowest(runs, name))]
    if len(found) < 2:
        return f"What several networks take for the same wrong class: {NOT_MEASURED}."
    labels, _ = records.predictions(found[0])
    classes = np.array([records.predictions(r)[1].argmax(axis=1) for r in found])
    sure = np.array([records.predictions(r)[1].max(axis=1) > 0.9 for r in found]).all(axis=0)
    same = (classes == classes[0]).all(axis=0) & (classes[0] != labels)
    return (
        f"On {int(same.sum())} of {len(labels):,} test images all {len(found)} of the paper's "
        "networks that have a record agree on one class that is not the label, on "
        f"{int((same & sure).sum())} of them each with a probability above 0.9. These "
        "are where to look for wrong labels first."
    )


def label_noise(found: dict[str, Any] | None) -> str:
    """Says what copies with several labels tell of the labels; from `results/dataset.json`."""
    if found is None:
        return f"{NOT_MEASURED}: `uv run python -m fer_jax.report.duplicates` does."
    test, twins = found["within"]["test"], found["between"]["train, test"]
    wrong = twins["contradicted"] / twins["images"]
    return (
        "Conflicting labels bound the accuracy that can be attained. A function of the pixels "
        f"gives copies one answer, so nothing can exceed {test['best_accuracy']:.4f} on test by "
        "the copies within test alone. The copies in train say more: the labels of "
        f"{twins['images']} test images can be compared with those of their copies there, and "
        f"{twins['contradicted']}, {100 * wrong:.1f} %, are like none of them. If both labels are "
        f"wrong equally often and independently, {50 * wrong:.1f} % of the test labels are wrong, "
        "and where a label is wrong a network is right by chance only."
    )


def resolution(runs: Runs) -> str:
    """Says which differences of two accuracies on different images mean nothing."""
    row = next(iter(tables.main_rows(runs).values()), None)
    if row is None:
        return f"The standard error: {NOT_MEASURED}."
    metrics = row[0]["metrics"]["test"]
    error = statistics.binomial_error(metrics["accuracy"], metrics["count"])
    return (
        "Of two networks tested on *different* images, differences below about "
        f"{100 * 1.96 * 2**0.5 * error:.1f} points say nothing."
    )


def compared(runs: Runs) -> list[str]:
    """Returns the networks that are compared pair by pair.

    They are the paper's, those of `tables.RECIPES`, and the best of the related work by valid
    accuracy of their lowest seed, so that test does not choose. One that is a network of the paper
    under another name is not compared again.
    """
    ours = [_network(found) for name in PAPER if (found := lowest(runs, name))]
    best = []
    for related in RELATED:
        record = lowest(runs, related.experiment)
        if record and records.is_complete(record) and _network(record) not in ours:
            best.append((record["metrics"]["valid"]["accuracy"], related.experiment))
    best = sorted(best, reverse=True)[:BEST_RELATED]
    ours = [name for name in tables.main_rows(runs) if name in tables.RECIPES]
    return [name for name in PAPER if runs.get(name)] + ours + [name for _, name in best]


def _network(found: Record) -> dict[str, Any]:
    """Returns a record's `config.model` without fields that say nothing, which older ones lack."""
    return {name: value for name, value in found["config"]["model"].items() if value is not None}


def differences(found: Sequence[tables.Pair]) -> str:
    """Says which of the compared networks differ."""
    clear = [pair for pair in found if pair.differs]
    if not clear:
        return (
            f"None of the {len(found)} differences is one that chance would not bring: as far as "
            "these test images and these runs tell, the networks are equally good."
        )
    worse = defaultdict(list)
    for pair in clear:
        worse[tables.title(pair.better)].append(tables.title(pair.worse))
    lines = [f"* {better} is better than {'; '.join(others)}." for better, others in worse.items()]
    return (
        f"Of {len(found)} differences {len(clear)} are larger than chance would bring; the other "
        "networks cannot be told apart on these images.\n\n" + "\n".join(lines)
    )
