"""docs/reproduction.md, the same page as HTML, and README.md's tables, all made from records."""

import json
import os
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from fer_jax.data.dataset import Dataset
from fer_jax.errors import DataError
from fer_jax.report import duplicates, figures, markdown, records, statistics, tables
from fer_jax.report.figures import Drawing, Faces
from fer_jax.report.paper import CONFUSION, PAPER, RELATED, TITLES
from fer_jax.report.records import NOT_MEASURED, Record, Runs
from fer_jax.study.plan import ROOT, RUNS

DOCS = ROOT / "docs"
FACTORS = ROOT / "results" / "factors"  # records of the factor study
BEST_RELATED = 3  # networks of the related work that are compared with the study's, pair by pair
_DATA = "data.json"  # the numbers of all figures, beside them
_SHEETS = ("arch01", "arch02_bs96", "arch03")  # the study's figures 9, 10, 11


class Page(NamedTuple):
    """A report before it is written."""

    markdown: str
    drawings: list[Drawing]


class Sources(NamedTuple):
    """All that a page is made from."""

    runs: Runs
    copies: dict[str, Any] | None  # results/dataset.json
    faces: Faces
    factors: Any = None  # table of the factor study, a pandas frame


def load(folder: Path = RUNS, copies: Path = duplicates.PATH) -> Sources:
    """Reads the records; without a record of the data set, images go by their place in test.

    Raises:
      ValueError: if a record may not be used; see :func:`records.load_runs`.
    """
    runs = records.load_runs(folder)
    found = json.loads(copies.read_text()) if copies.exists() else None
    names = [f"PrivateTest_{number}" for number in found["test_numbers"]] if found else []
    if not found or any(
        record["dataset"]["source_sha256"] != found["dataset"]["source_sha256"]
        for rows in runs.values()
        for record in rows
    ):
        counts = [r["dataset"]["count"]["test"] for rows in runs.values() for r in rows]
        names = [f"test image {i}" for i in range(max(counts, default=0))]
    from fer_jax.study import analysis as factors

    return Sources(runs, found, Faces(names), factors.load(FACTORS))


def with_pictures(sources: Sources, dataset: Dataset) -> Sources:
    """Returns the sources with the pictures of test.

    Raises:
      DataError: if a record's labels are not those of the data set, so that pictures and
        predictions would not belong together.
    """
    test = dataset.splits["test"]
    for name, rows in sources.runs.items():
        for record in rows:
            labels, _ = records.predictions(record)
            if not np.array_equal(labels, test.labels):
                raise DataError(
                    f"the test labels of {name}, seed {record['seed']}, are not those of "
                    f"{dataset.name}/{dataset.kind}; give the data that the records are of"
                )
    names = [name.decode() for name in test.ids]
    return sources._replace(faces=Faces(names, test.images))


def build(sources: Sources) -> Page:
    """Makes the page: its sections one after another, and the figures they show."""
    drawings: list[Drawing] = []
    sections = [
        make(sources, drawings)
        for make in (
            _accuracy,
            _time,
            _pairs,
            _curves,
            _confusion,
            _related,
            _layers,
            _predictions,
            _calibration,
            _mistakes,
            _label_noise,
            _differences,
            _factors,
            _limits,
        )
    ]
    titles = [section.split("\n", 1)[0].removeprefix("## ") for section in sections]
    contents = "\n".join(f"* [{title}](#{_anchor(title)})" for title in titles)
    text = "\n\n".join([_INTRODUCTION, _in_short(sources.runs), contents, *sections])
    return Page(text + "\n", drawings)


def _anchor(title: str) -> str:
    """Returns what GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


_INTRODUCTION = """# The study's tables and figures, made anew

Made by `uv run launch.py --mode=report` from the records in [`results`](../results) alone; nothing
on this page is typed from a run by hand. [The same page in one HTML file](reproduction.html).

**train**, **valid** and **test** are the competition's Training (28,709 images), PublicTest (3,589)
and PrivateTest (3,589). Every network is fitted on train; the epoch with the best valid accuracy is
kept, and test is opened once, for that epoch. Accuracy is top-1. *No duplicates* leaves out the
test images whose pixels also stand in train. Where there are several seeds, numbers are mean ±
standard deviation over them. What the study leaves open (optimiser, rate, epochs) is chosen in
[`fer_jax/config.py`](../fer_jax/config.py)."""


def _in_short(runs: Runs) -> str:
    measured = [name for name in PAPER if runs.get(name)]
    if not measured:
        return f"In short: {NOT_MEASURED}."
    passing = sum(
        any(statistics.crossing(r["history"], PAPER[name][0]) for r in runs[name])
        for name in measured
    )
    valid = max(row["valid/accuracy"] for n in measured for r in runs[n] for row in r["history"])
    lowest = min(PAPER[name][0] for name in PAPER)
    tested = [
        fmean([r["metrics"]["test"]["accuracy"] for r in records.main_row(runs[name])])
        for name in measured
    ]
    return f"""**In short.** Of the study's four networks {len(measured)} have a record here, and in
{passing} of these the *running training* accuracy reaches the study's figure in the epochs run. On
images that a network was not fitted on, valid accuracy is {valid:.3f} at best over all epochs of
all runs; the study's lowest figure is {lowest:.3g}. On test the networks reach {_range(tested)}."""


def _show(drawing: Drawing, drawings: list[Drawing]) -> str:
    drawings.append(drawing)
    return f"![{drawing.alt}](figures/{drawing.name}.svg)"


def _lowest(runs: Runs, name: str) -> Record | None:
    """Returns the record that stands for a network where one run is shown: its lowest seed."""
    return next(iter(records.main_row(runs.get(name, []))), None)


# Sections


def _accuracy(sources: Sources, drawings: list[Drawing]) -> str:
    del drawings
    runs = sources.runs
    return f"""## Tables 4 and 5: accuracy and loss

The study does not say which split its accuracies are on; [below](#{_anchor(_PAIRS)}) they are
looked for on our training curves. Ours are those of the kept epoch.

{tables.accuracy_table(runs, list(PAPER))}

Table 4, batch 16 against 96:

{tables.accuracy_table(runs, ["arch02_bs16", "arch02_bs96"])}

The study's equation (3), (TP + TN) / all, is accuracy of one class against the rest. Averaged over
seven classes it is 1 - 2 (1 - accuracy) / 7, so it looks much better than top-1 accuracy and says
the same. On test:

{tables.metrics_table(runs)}"""


def _time(sources: Sources, drawings: list[Drawing]) -> str:
    del drawings
    return f"""## Table 5: execution time

The study gives hours on its CPU without the number of epochs. Ours is training, without compilation
and validation. On a CPU it is in core minutes, the processor time that the run itself used of all
cores, because runs shared the machine with other work and were paused at times; two cores used
fully give two core minutes a minute. Records of GPUs have minutes by the clock. Times are means
over the seeds; the records come from successive commits, which they name, and later ones train
faster.
Times measured undisturbed, by the newest, are in [performance.md](../docs/performance.md).

{tables.time_table(sources.runs)}"""


_PAIRS = "What the study's accuracies are"


def _pairs(sources: Sources, drawings: list[Drawing]) -> str:
    runs = sources.runs
    figure = _show(figures.paper_pairs(runs), drawings)
    return f"""## {_PAIRS}

The *running* training accuracy is what Keras prints while it trains: dropout on, averaged over an
epoch in which the network changes. The table gives the first epoch at which ours reaches the
study's accuracy, the running loss where the curve passes it (a straight line between two epochs),
and what the same network scored without dropout on train, and on valid.

{tables.crossing_table(runs) if any(runs.get(n) for n in PAPER) else NOT_MEASURED}

{_pairs_verdict(runs)}

{figure}"""


def _pairs_verdict(runs: Runs) -> str:
    passed = {name: _passing(runs, name) for name in PAPER if runs.get(name)}
    sentences = []
    for name, losses in passed.items():
        accuracy, loss, _ = PAPER[name]
        best = max(row["valid/accuracy"] for record in runs[name] for row in record["history"])
        reached = f"does not reach accuracy {accuracy:.3g} in the epochs run"
        if losses:
            passed_at = f"passes accuracy {accuracy:.3g} at a loss of {_range(losses)}"
            reached = f"{passed_at} (the study: {loss:.3g})"
        sentences.append(
            f"* {TITLES[name]}: our running training curve {reached}; valid stands at {best:.3f} "
            "at best."
        )
    return "\n".join(sentences)


def _passing(runs: Runs, name: str) -> list[float]:
    losses = [statistics.loss_at(r["history"], PAPER[name][0]) for r in runs[name]]
    return [loss for loss in losses if loss is not None]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _curves(sources: Sources, drawings: list[Drawing]) -> str:
    parts = []
    for name in PAPER:
        row = records.main_row(sources.runs.get(name, []))
        if row:
            figure = _show(figures.learning_curves(name, row), drawings)
            parts.append(f"{TITLES[name]}, all seeds ({len(row)}):\n\n{figure}")
        else:
            parts.append(f"{TITLES[name]}: {NOT_MEASURED}.")
    related = figures.related_curves(sources.runs)
    if related.data:
        shown = _show(related, drawings)
        parts.append(
            f"The related work's networks that were trained for several epochs:\n\n{shown}"
        )
    body = "\n\n".join(parts)
    return f"## Learning curves\n\n{body}"


def _confusion(sources: Sources, drawings: list[Drawing]) -> str:
    found = _lowest(sources.runs, "arch01")
    right = sum(line[i] for i, line in enumerate(CONFUSION))
    count = sum(map(sum, CONFUSION))
    accuracy = right / count
    figure = _show(figures.confusion(found), drawings) if found else f"Ours: {NOT_MEASURED}."
    return f"""## Table 3: confusion matrix of Architecture 01

The study's matrix has {right:,} of {count:,} images right, {100 * accuracy:.1f} % (by its equation
(3) {100 * (1 - 2 * (1 - accuracy) / 7):.1f} %), and its row sums are the class counts of
PublicTest, our valid. So the {PAPER["arch01"][0]:.3g} of its table 5 is no accuracy on these
images. Rows are true classes.

{tables.confusion_tables(found)}

{figure}"""


def _related(sources: Sources, drawings: list[Drawing]) -> str:
    del drawings
    others = tables.other_table(sources.runs)
    more = f"\n\nOther runs that have a record:\n\n{others}" if others else ""
    return f"""## Tables 1 and 2: the related work under one protocol

The accuracies that the study prints were taken by different people on different splits, most of
them on other data. Here the same networks are trained on train, chosen on valid, and tested once. A
run went *to the end* if valid had not improved for the epochs that its experiment names (five), or
if it made all its epochs; other rows say what they are and must not be read as what the network
can do. Parameters count running statistics; a multiply-add is two FLOPs. What had to be chosen
stands in [`experiments`](../experiments) and [`fer_jax/models`](../fer_jax/models).

{tables.related_table(sources.runs)}{more}"""


def _layers(sources: Sources, drawings: list[Drawing]) -> str:
    del sources, drawings
    parts = [
        f"Figure {number}, {title}:\n\n{tables.layers_table(name)}"
        for number, title, name in (
            (6, "Architecture 01", "arch01"),
            (7, "Architecture 02", "arch02_bs96"),
            (8, "Architecture 03", "arch03"),
        )
    ]
    body = "\n\n".join(parts)
    return f"""## Figures 6 to 8: the architectures

As `uv run launch.py --config=experiments/arch01.py --mode=summary` shows them.

{body}"""


def _predictions(sources: Sources, drawings: list[Drawing]) -> str:
    parts = []
    for number, name in zip((9, 10, 11), _SHEETS, strict=True):
        found = _lowest(sources.runs, name)
        shown = f"{NOT_MEASURED}."
        if found:
            shown = f"seed {found['seed']}:\n\n"
            shown += _show(figures.predictions(name, found, sources.faces), drawings)
        parts.append(f"### Figure {number}\n\n{TITLES[name]}, {shown}")
    body = "\n\n".join(parts)
    return f"""## Figures 9 to 11: predictions on PrivateTest

The images are the first {figures.PER_CLASS} of each class in the order of the data set, so nobody
has picked them. The label is set in bold; the likeliest class is blue where it is right and orange,
hatched, where it is not. {_pictures(sources)}

{body}"""


def _pictures(sources: Sources) -> str:
    if sources.faces.images is not None:
        return "Pictures are of the data set and must not be published."
    return (
        "The data set's pictures may not be published: with `--config.data.source=PATH` the same "
        "command writes this page with them into `out/reproduction`."
    )


def _calibration(sources: Sources, drawings: list[Drawing]) -> str:
    if not sources.runs:
        return f"## Calibration\n\n{NOT_MEASURED}"
    figure = _show(figures.reliability(sources.runs), drawings)
    return f"""## Calibration

Of the images to which a network gives probability 0.8, eight of ten should be right. The expected
calibration error is the mean distance between confidence (the largest probability) and accuracy,
in {statistics.BINS} bins of equal width (Guo et al. 2017), on test. A network whose mean confidence
is above its accuracy is too sure of itself.

{tables.calibration_table(sources.runs)}

The lowest seed of each of the study's networks, with the number of images in each bin:

{figure}"""


def _mistakes(sources: Sources, drawings: list[Drawing]) -> str:
    parts = []
    for name in _SHEETS:
        found = _lowest(sources.runs, name)
        if not found:
            parts.append(f"{TITLES[name]}: {NOT_MEASURED}.")
            continue
        table = tables.mistakes_table(figures.mistakes(found, sources.faces))
        parts.append(f"{TITLES[name]}, seed {found['seed']}:\n\n{table}")
        if sources.faces.images is not None:
            parts.append(_show(figures.mistakes_sheet(name, found, sources.faces), drawings))
    body = "\n\n".join(parts)
    return f"""## The most confident mistakes

The {figures.MISTAKES} test images of which a network is surest while the label says otherwise; the
records keep probabilities to three digits. {_shared_mistakes(sources.runs)}

{body}"""


def _shared_mistakes(runs: Runs) -> str:
    found = [r for name in PAPER if (r := _lowest(runs, name))]
    if len(found) < 2:
        return ""
    labels, _ = records.predictions(found[0])
    classes = np.array([records.predictions(r)[1].argmax(axis=1) for r in found])
    sure = np.array([records.predictions(r)[1].max(axis=1) > 0.9 for r in found]).all(axis=0)
    same = (classes == classes[0]).all(axis=0) & (classes[0] != labels)
    return (
        f"On {int(same.sum())} of {len(labels):,} test images all {len(found)} of the study's "
        f"networks that have a record agree on one class that is not the label, on "
        f"{int((same & sure).sum())} of them each with a probability above 0.9. These "
        "are where to look for wrong labels first."
    )


def _label_noise(sources: Sources, drawings: list[Drawing]) -> str:
    del drawings
    found = sources.copies
    if found is None:
        return (
            f"## Label noise\n\n{NOT_MEASURED}: `uv run python -m fer_jax.report.duplicates` does."
        )
    between = found["between"]
    test, twins = found["within"]["test"], between["train, test"]
    wrong = twins["contradicted"] / twins["images"]
    rows = [
        [
            *names.split(", "),
            *(
                f"{n['images']}",
                n["contradicted"],
                f"{100 * n['contradicted'] / n['images']:.1f} %",
            ),
        ]
        for names, n in between.items()
    ]
    header = ("First split", "Second split", "Images of the second with a copy in the first")
    header += ("Label that no copy has", "Share")
    return f"""## Label noise

Copies are images that are equal in every pixel; crops and rescaled versions are not counted.
Record: [`results/dataset.json`](../results/dataset.json), made by
`uv run python -m fer_jax.report.duplicates`.

{tables.duplicates_table(found)}

{markdown.table(header, rows, text=(1,))}

Conflicting labels bound the accuracy that can be attained. A function of the pixels gives copies
one answer, so nothing can exceed {test["best_accuracy"]:.4f} on test by the copies within test
alone. The copies in train say more: the labels of {twins["images"]} test images can be compared
with those of their copies there, and {twins["contradicted"]}, {100 * wrong:.1f} %, are like none of
them. If both labels are wrong equally often and independently, {50 * wrong:.1f} % of the test
labels are wrong, and where a label is wrong a network is right by chance only. Copies may have been
labelled together, and a label that is wrong twice goes unseen, so this is rather too low. People
reach about 65 ± 5 % on these images (Goodfellow et al. 2013, Challenges in Representation
Learning)."""


def _differences(sources: Sources, drawings: list[Drawing]) -> str:
    runs = sources.runs
    names = compared(runs)
    if not names:
        return f"## Which differences mean something\n\n{NOT_MEASURED}"
    figure = _show(figures.seed_spread(runs), drawings)
    found = tables.pairs(runs, names)
    paired = ""
    if found:
        paired = f"""

Two networks tested on the same images are compared by the images that just one of them gets right
(McNemar's exact test), which is sharper than comparing two accuracies. Compared are the study's
networks and the {BEST_RELATED} best other ones of the related work by valid accuracy among those
trained to the end, the lowest seed of each; the last column says in how many pairs of their seeds
the same one is better. Testing many pairs finds differences by chance; Holm's correction keeps the
probability of even one such to 5 %.

{tables.pairs_table(found)}

{_differences_verdict(found)}"""
    return f"""## Which differences mean something

An accuracy p on n test images stands for an accuracy on all such faces with a standard error of
sqrt(p (1 - p) / n): of two networks tested on *different* images, differences below about
{_resolution(runs)} points say nothing. The deviation over seeds is another thing: how much the
same recipe varies on the same images.

{tables.spread_table(runs)}

{figure}{paired}"""


def _resolution(runs: Runs) -> str:
    """Returns 1.96 standard errors of a difference of two accuracies, in points."""
    metrics = next(iter(tables.main_rows(runs).values()))[0]["metrics"]["test"]
    error = statistics.binomial_error(metrics["accuracy"], metrics["count"])
    return f"{100 * 1.96 * 2**0.5 * error:.1f}"


def compared(runs: Runs) -> list[str]:
    """Returns the networks that are compared pair by pair.

    They are the study's, and the best of the related work by valid accuracy of their lowest seed,
    so that test does not choose. One that is a network of the study under another name is not
    compared again.
    """
    studied = [runs[name][0]["config"]["model"] for name in PAPER if runs.get(name)]
    best = []
    for related in RELATED:
        record = _lowest(runs, related.experiment)
        if record and records.is_complete(record) and record["config"]["model"] not in studied:
            best.append((record["metrics"]["valid"]["accuracy"], related.experiment))
    best = sorted(best, reverse=True)[:BEST_RELATED]
    return [name for name in PAPER if runs.get(name)] + [name for _, name in best]


def _differences_verdict(found: Sequence[tables.Pair]) -> str:
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


def _factors(sources: Sources, drawings: list[Drawing]) -> str:
    from fer_jax.study import analysis as factors

    frame = sources.factors
    if frame is None or frame.empty:
        return f"## Which factors matter\n\n{NOT_MEASURED}"
    rows = json.loads(frame.to_json(orient="records", double_precision=6))
    shown = [
        _show(Drawing(name, _FACTOR_ALTS[name], rows, lambda _, make=make: make(frame)), drawings)
        for name, make in factors.drawn(frame).items()
    ]
    return "\n\n".join(["## Which factors matter", factors.markdown(frame), *shown])


_FACTOR_ALTS = {
    "factors_accuracy": "Accuracy against each factor of the study: running train, train, valid "
    "and test. The tables above have the numbers.",
    "factors_time": "Training time against each factor of the study. The tables above have the "
    "numbers.",
    "factors_interaction": "Accuracy with few and many convolution layers, each without and with "
    "dropout. The tables above have the numbers.",
}


def _limits(sources: Sources, drawings: list[Drawing]) -> str:
    del sources, drawings
    return """## Limits

* The study's optimiser, rate, initial weights and epochs are unknown; ours are a guess that leads
  the running training curve to its pairs of accuracy and loss, which other choices may do as well.
* The paired tests are of single trained networks. They do not say that one architecture beats
  another under every seed; the deviation over seeds beside them tells how far to trust them.
* Rates were chosen once for each network and not tuned, so the order of the related work's networks
  is the order under this recipe.
* *No duplicates* leaves out exact copies only, not crops or rescaled versions of an image."""


# Files


def write(page: Page, folder: Path) -> None:
    """Writes `reproduction.md`, `reproduction.html` and `figures/` into a folder."""
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    names = {f"{drawing.name}.svg" for drawing in page.drawings}
    for path in pictures.glob("*.svg"):
        if path.name not in names:
            path.unlink()
    for drawing in page.drawings:
        drawing.save(pictures)
    (pictures / _DATA).write_text(plotted(page))
    # Links lead from docs/; a page elsewhere has another way to the root.
    text = page.markdown.replace("](../", f"]({os.path.relpath(ROOT, folder)}/")
    (folder / "reproduction.md").write_text(text)
    (folder / "reproduction.html").write_text(html(text, folder))


def plotted(page: Page) -> str:
    """Returns the numbers of all figures as JSON, a figure a line."""
    lines = [f"{json.dumps(d.name)}: {json.dumps(d.data, allow_nan=False)}" for d in page.drawings]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def html(text: str, folder: Path) -> str:
    """Returns Markdown as one HTML page with its figures inside.

    Args:
      text: the Markdown.
      folder: where its figures' paths start.
    """
    import markdown as converter

    body = converter.markdown(text, extensions=["tables", "toc", "sane_lists"])
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )

    def inline(match: re.Match[str]) -> str:
        svg = (folder / match[2]).read_text()
        svg = re.sub(r"\s+", " ", svg[svg.index("<svg") :]).replace("> <", "><")
        address = urllib.parse.quote(svg, safe=" =:/'(),;!*@?+$<>")
        return f'<div class="wide"><img alt="{match[1]}" src="data:image/svg+xml,{address}"></div>'

    body = re.sub(r'<img alt="([^"]*)" src="(figures/[^"]+)" ?/?>', inline, body)
    title = text.split("\n", 1)[0].removeprefix("# ")
    return _HTML.replace("TITLE", title).replace("BODY", body)


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 76rem; margin: 0 auto; padding: 1rem; }
p, ul { max-width: 50rem; }
h1, h2, h3 { line-height: 1.25; margin-top: 2em; }
h1 { margin-top: 0.5em; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: 0.25em 0.6em; vertical-align: top; }
th { background: #f2f2f2; }
td[style*="right"] { white-space: nowrap; }
img { display: block; width: 100%; min-width: 38rem; max-width: 50rem; }
code { background: #f2f2f2; padding: 0 0.2em; }
a { color: #0057a3; }
</style>
</head>
<body>
BODY
</body>
</html>
"""


def updated_readme(text: str, sources: Sources) -> str:
    """Returns README.md's text with its tables made anew from the records."""
    from fer_jax.study import analysis as factors

    text = markdown.replace_block(text, "paper", tables.paper_table(sources.runs))
    text = markdown.replace_block(text, "crossing", tables.crossing_table(sources.runs))
    return markdown.replace_block(text, "claims", factors.claims(sources.factors))


def write_docs() -> None:
    """Brings docs/reproduction.* and README.md up to date with the records.

    Raises:
      ValueError: if a record may not be used; see :func:`records.load_runs`.
    """
    sources = load()
    write(build(sources), DOCS)
    if not sources.factors.empty:
        from fer_jax.study import analysis as factors

        factors.write_csv(sources.factors, FACTORS.with_suffix(".csv"))
    path = ROOT / "README.md"
    path.write_text(updated_readme(path.read_text(), sources))


def write_illustrated(dataset: Dataset, folder: Path) -> None:
    """Writes the page with the data set's pictures, which must not be published, into a folder.

    Raises:
      ValueError: if a record may not be used; see :func:`records.load_runs`.
      DataError: if the records are of other data.
    """
    write(build(with_pictures(load(), dataset)), folder)
