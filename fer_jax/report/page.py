"""docs/reproduction.md and README.md: prose edited in place, and blocks made from records.

A block of these two has a name, which :func:`page_blocks` or :func:`readme_blocks` map to the
function that makes it; see :mod:`fer_jax.report.markdown`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax.data.dataset import Dataset
from fer_jax.errors import DataError
from fer_jax.report import (
    ablation,
    cost,
    duplicates,
    factor_figures,
    factors,
    figures,
    html,
    markdown,
    records,
    reliability,
    speed,
    tables,
    words,
)
from fer_jax.report.figures import Drawing, Faces
from fer_jax.report.paper import PAPER, TITLES
from fer_jax.report.records import NOT_MEASURED, Record, Runs
from fer_jax.runs import record, workdir
from fer_jax.study.plan import ROOT, RUNS

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGE = DOCS / "reproduction.md"
FACTORS = ROOT / "results" / "factors"  # records of the factor study
ABLATION = ROOT / "results" / "compact_ablation"  # records of the ablation of Compact's recipe
REPLACED = ROOT / "results" / "replaced"  # records that others, of the same name, took the place of
MUON = ROOT / "results" / "compact_muon"  # of Compact with Muon, longer than there
WEIGHTS = ROOT / "checkpoints" / "pretrained"  # that come with the package
OUT = Path("out")  # what git ignores
_DATA = "data.json"  # the numbers of all figures, beside them
_SHEETS = {"arch01": 9, "arch02_bs96": 10, "arch03": 11}  # experiment -> the paper's figure

type Makers = dict[str, Callable[[], str]]  # block -> what makes its content


class Sources(NamedTuple):
    """All that a document is made from."""

    runs: Runs
    copies: dict[str, Any] | None  # results/dataset.json
    faces: Faces
    factors: Any = None  # table of the factor study, a pandas frame
    ablation: Any = None  # of the ablation of Compact's recipe, likewise
    muon: Any = None  # of longer runs with Muon, likewise
    imported: Sequence[Record] = ()  # of published weights
    replaced: Sequence[Record] = ()  # no longer in any table
    shipped: Sequence[Record] = ()  # what weights say of the runs that they are of
    peers: Sequence[Record] = ()  # of training beside Keras and PyTorch


def load(folder: Path = RUNS, copies: Path = duplicates.PATH) -> Sources:
    """Reads the records; without a record of the data set, images go by their place in test.

    Records that no table may use are left out; see :func:`fer_jax.report.records.load_runs`.

    Raises:
      RecordError: if the record of the data set cannot be read.
    """
    runs = records.load_runs(folder)
    found = duplicates.read(copies)
    names = [f"PrivateTest_{number}" for number in found["test_numbers"]] if found else []
    if not found or any(
        record["dataset"].get("source_sha256") != found["dataset"]["source_sha256"]
        for rows in runs.values()
        for record in rows
    ):
        counts = [r["metrics"]["test"]["count"] for rows in runs.values() for r in rows]
        names = [f"test image {i}" for i in range(max(counts, default=0))]
    from fer_jax.study import table  # pandas takes a second to import
    from fer_jax.study.imported import read_all

    return Sources(
        runs=runs,
        copies=found,
        faces=Faces(names),
        factors=table.load(FACTORS),
        ablation=table.load(ABLATION),
        muon=table.load(MUON),
        imported=read_all(),
        replaced=[record.read(path) for path in sorted(REPLACED.glob("*.json"))],
        shipped=[
            json.loads(path.read_text(encoding="utf-8"))["record"]
            for path in sorted(WEIGHTS.glob("*/metadata.json"))
        ],
        peers=speed.load(),
    )


def with_pictures(sources: Sources, dataset: Dataset) -> Sources:
    """Returns the sources with the pictures of test.

    Raises:
      DataError: if a record's labels are not those of the data set, so that pictures and
        predictions would not belong together.
    """
    test = dataset.splits["test"]
    for name, rows in sources.runs.items():
        for found in rows:
            labels, _ = records.predictions(found)
            if not np.array_equal(labels, test.labels):
                raise DataError(
                    f"the test labels of {name}, seed {found['seed']}, are not those of "
                    f"{dataset.name}/{dataset.kind}; give the data that the records are of"
                )
    names = [name.decode() for name in test.ids]
    return sources._replace(faces=Faces(names, test.images))


def drawings(sources: Sources) -> dict[str, Drawing]:
    """Returns name -> figure, of all figures for which there are records."""
    runs, faces = sources.runs, sources.faces
    found = [
        figures.learning_curves(name, row)
        for name in PAPER
        if (row := records.main_row(runs.get(name, [])))
    ]
    related = figures.related_curves(runs)
    if related.data:
        found.append(related)
    if any(runs.get(name) for name in PAPER):
        found += [figures.paper_pairs(runs), figures.reliability(runs)]
    if tables.main_rows(runs):
        found += [figures.seed_spread(runs), cost.figure(runs, sources.imported)]
    if record := words.lowest(runs, "arch01"):
        found.append(figures.confusion(record))
    for name in _SHEETS:
        if record := words.lowest(runs, name):
            found.append(figures.predictions(name, record, faces))
            if faces.images is not None:
                found.append(figures.mistakes_sheet(name, record, faces))
    return {drawing.name: drawing for drawing in found} | factor_figures.drawings(sources.factors)


# Blocks


def page_blocks(sources: Sources, drawn: Mapping[str, Drawing]) -> Makers:
    """Returns what makes each block of docs/reproduction.md.

    Args:
      sources: all there is.
      drawn: the figures; from :func:`drawings`.
    """
    runs, copies = sources.runs, sources.copies
    of_factors = factors.blocks(sources.factors)
    compact = records.main_row(runs.get("compact", []))
    ablated = ablation.blocks(sources.ablation, compact)
    published = {tables.published_title(found): [found] for found in sources.imported}
    pairs = tables.pairs(runs | published, [*words.compared(runs), *published])
    makers: Makers = {
        "in-short": lambda: words.in_short(runs),
        "accuracy": lambda: tables.accuracy_table(runs),
        "metrics": lambda: tables.metrics_table(runs),
        "time": lambda: tables.time_table(runs),
        "crossing": lambda: tables.crossing_table(runs),
        "crossing-words": lambda: words.crossing(runs),
        "confusion": lambda: tables.confusion_tables(words.lowest(runs, "arch01")),
        "related": lambda: tables.related_table(runs, sources.imported),
        "table-2": lambda: words.table_2(runs, sources.imported),
        "cost": lambda: cost.table(runs, sources.imported),
        "recipes": lambda: tables.recipes_table(runs),
        "openings": lambda: _openings(sources),
        "other-runs": lambda: tables.other_table(runs),
        "precision": lambda: tables.precision_table(runs),
        "calibration": lambda: tables.calibration_table(runs),
        "mistakes": lambda: _mistakes(sources, drawn),
        "shared-mistakes": lambda: words.shared_mistakes(runs),
        "copies": lambda: tables.duplicates_table(copies) if copies else NOT_MEASURED,
        "copies-between": lambda: tables.copies_table(copies) if copies else NOT_MEASURED,
        "label-noise": lambda: words.label_noise(copies),
        "resolution": lambda: words.resolution(runs),
        "spread": lambda: tables.spread_table(runs),
        "pairs": lambda: tables.pairs_table(pairs),
        "pairs-words": lambda: words.differences(pairs),
        "muon": lambda: ablation.muon(sources.muon, compact),
        "learning-curves": lambda: _learning_curves(drawn),
        "predictions": lambda: _predictions(runs, drawn),
    }
    makers |= {f"layers-{name}": _later(tables.layers_table, name) for name in _SHEETS}
    makers |= {name: _later(found.get, name) for found in (of_factors, ablated) for name in found}
    return makers | {f"figure-{name}": _later(_image, drawn, name) for name in _FIGURES}


def readme_blocks(sources: Sources) -> Makers:
    """Returns what makes each block of README.md."""
    return {
        "verdict": lambda: words.verdict(sources.runs),
        "paper": lambda: tables.paper_table(sources.runs),
        "cost": lambda: cost.table(sources.runs, sources.imported),
        "speed": lambda: speed.table(sources.peers),
        "claims": lambda: factors.blocks(sources.factors)["claims"],
    }


# Figures that a block of their own shows.
_FIGURES = (
    *("paper_pairs", "learning_curves_related", "confusion_arch01", "reliability", "seed_spread"),
    "cost",
    *("factors_accuracy", "factors_time", "factors_interaction"),
)


def _later(make: Callable[..., Any], *arguments: Any) -> Callable[[], str]:
    return lambda: make(*arguments)


def _openings(sources: Sources) -> str:
    frame = sources.factors
    studied = [] if frame is None or frame.empty else frame["test_evaluations"].tolist()
    replaced = [found["test_evaluations"] for found in sources.replaced]
    kept = [*sources.replaced, *(found for row in sources.runs.values() for found in row)]
    losses = {found["metrics"]["test"]["loss"] for found in kept}
    shipped = [
        weights["test_evaluations"]
        for weights in sources.shipped
        if weights["metrics"]["test"]["loss"] not in losses  # the run's record is not kept
    ]
    return words.openings(sources.runs, studied, replaced, shipped)


def _image(drawn: Mapping[str, Drawing], name: str) -> str:
    if name not in drawn:
        return f"This figure: {NOT_MEASURED}."
    return f"![{drawn[name].alt}](figures/{name}.svg)"


def _learning_curves(drawn: Mapping[str, Drawing]) -> str:
    return "\n\n".join(
        _folded(TITLES[name], _image(drawn, f"learning_curves_{name}")) for name in PAPER
    )


def _folded(summary: str, content: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def _predictions(runs: Runs, drawn: Mapping[str, Drawing]) -> str:
    parts = []
    for name, number in _SHEETS.items():
        record = words.lowest(runs, name)
        title = f"{TITLES[name]}, seed {record['seed']}" if record else TITLES[name]
        image = _image(drawn, f"predictions_{name}")
        parts.append(_folded(f"Figure {number}: {title}", image))
    return "\n\n".join(parts)


def _mistakes(sources: Sources, drawn: Mapping[str, Drawing]) -> str:
    parts = []
    for name in _SHEETS:
        record = words.lowest(sources.runs, name)
        if not record:
            parts.append(f"{TITLES[name]}: {NOT_MEASURED}.")
            continue
        shown = tables.mistakes_table(figures.mistakes(record, sources.faces))
        if f"mistakes_{name}" in drawn:
            shown += f"\n\n{_image(drawn, f'mistakes_{name}')}"
        parts.append(_folded(f"{TITLES[name]}, seed {record['seed']}", shown))
    return "\n\n".join(parts)


# Files


def updated_page(text: str, sources: Sources, drawn: Mapping[str, Drawing]) -> str:
    """Returns docs/reproduction.md's text with its blocks made anew.

    Raises:
      DocumentError: if a block is unknown or missing.
    """
    return markdown.replace_blocks(text, page_blocks(sources, drawn))


def updated_readme(text: str, sources: Sources) -> str:
    """Returns README.md's text with its blocks made anew.

    Raises:
      DocumentError: if a block is unknown or missing.
    """
    return markdown.replace_blocks(text, readme_blocks(sources))


def plotted(drawn: Mapping[str, Drawing]) -> str:
    """Returns the numbers of all figures as JSON, a figure a line."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(drawing.data, allow_nan=False)}"
        for name, drawing in sorted(drawn.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_figures(drawn: Mapping[str, Drawing], folder: Path) -> None:
    """Writes the figures and their numbers into a folder; figures of other names there go."""
    for path in folder.glob("*.svg"):
        if path.stem not in drawn:
            path.unlink()
    for name, drawing in drawn.items():
        workdir.write_text(folder / f"{name}.svg", drawing.svg())
    workdir.write_text(folder / _DATA, plotted(drawn))


def write_docs(out: Path = OUT) -> None:
    """Brings README.md, docs/reproduction.md with its figures, and docs/reliability.md up to date.

    All come from the records, as does `results/factors.csv`.

    Args:
      out: where the same page goes as one HTML file, `reproduction.html`.

    Raises:
      DocumentError: if a document's blocks are not those that are made.
      WorkdirError: if a document cannot be written, or the record of reliability is damaged.
      RecordError: if the factor study's records do not belong together, or a record is of an
        experiment without a file.
    """
    sources = load()
    drawn = drawings(sources)
    text = updated_page(PAGE.read_text(encoding="utf-8"), sources, drawn)
    readme = updated_readme(README.read_text(encoding="utf-8"), sources)
    write_figures(drawn, DOCS / "figures")
    workdir.write_text(PAGE, text)
    workdir.write_text(README, readme)
    safe = reliability.updated_page(reliability.PAGE.read_text(encoding="utf-8"))
    workdir.write_text(reliability.PAGE, safe)
    if not sources.factors.empty:
        from fer_jax.study import table

        table.write_csv(sources.factors, FACTORS.with_suffix(".csv"))
    _write_html(text, drawn, out)


def write_illustrated(dataset: Dataset, folder: Path) -> None:
    """Writes the page with the data set's pictures, which must not be published, into a folder.

    Raises:
      DataError: if the records are of other data.
      DocumentError: as :func:`write_docs`.
    """
    sources = with_pictures(load(), dataset)
    drawn = drawings(sources)
    text = updated_page(PAGE.read_text(encoding="utf-8"), sources, drawn)
    write_figures(drawn, folder / "figures")
    # Links lead from docs/; a page elsewhere has another way to the root.
    text = text.replace("](../", f"]({os.path.relpath(ROOT, folder)}/")
    workdir.write_text(folder / "reproduction.md", text)
    workdir.write_text(folder / "reproduction.html", html.page(text, drawn))


def _write_html(text: str, drawn: Mapping[str, Drawing], out: Path) -> None:
    text = text.replace("](../", f"]({os.path.relpath(ROOT, out)}/")
    workdir.write_text(out / "reproduction.html", html.page(text, drawn))
