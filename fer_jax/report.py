"""Tables made from the records in `results/`; nothing in them is typed by hand.

`uv run python -m fer_jax.report` brings the tables in README.md up to date.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from fer_jax.study import ROOT, RUNS

# The study's tables 4 and 5: accuracy, loss and hours, which split they are on goes unsaid.
PAPER = {
    "arch01": (0.77, 0.70, 120),
    "arch02_bs16": (0.718, 0.757, 72),
    "arch02_bs96": (0.76, 0.63, 48),
    "arch03": (0.889, 0.29, 72),
}


def load_runs(folder: Path = RUNS) -> dict[str, list[dict[str, Any]]]:
    """Returns experiment -> its records, by seed.

    Raises:
      ValueError: if a record is not of a whole run that opened test once.
    """
    runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if found["test_evaluations"] != 1:
            raise ValueError(f"{path}: test was evaluated {found['test_evaluations']} times")
        if len(found["history"]) != found["epochs_run"]:
            raise ValueError(f"{path}: {len(found['history'])} epochs of {found['epochs_run']}")
        runs[found["experiment"]].append(found)
    return {name: sorted(found, key=lambda r: r["seed"]) for name, found in runs.items()}


def spread(values: list[float]) -> str:
    """Formats a mean, with the standard deviation over seeds where there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def crossing(history: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Returns the first row whose running training accuracy reaches `accuracy`, or None."""
    return next((row for row in history if row["train_running/accuracy"] >= accuracy), None)


def paper_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the study's rows beside ours, as Markdown."""
    lines = [
        "| Experiment | The study says | Ours: train | valid | test | test, no duplicates | "
        "Seeds | Best epoch | Training time | on |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (accuracy, loss, hours) in PAPER.items():
        said = f"{accuracy:.3g}, loss {loss:.3g}, {hours} h"
        lines.append(f"| `{name}` | {said} | {_ours(runs.get(name, []))} |")
    return "\n".join(lines)


def _ours(found: list[dict[str, Any]]) -> str:
    if not found:
        return " | ".join(["not measured yet"] + [""] * 7)
    cells = [
        spread([r["metrics"][s]["accuracy"] for r in found]) for s in ("train", "valid", "test")
    ]
    cells.append(spread([r["metrics"]["test"]["accuracy_unique"] for r in found]))
    cells.append(str(len(found)))
    cells.append(", ".join(f"{r['best_epoch']} of {r['epochs_run']}" for r in found))
    cells.append(f"{statistics.fmean(r['seconds']['train'] for r in found) / 60:.1f} min")
    cells.append("; ".join(sorted({_device(r) for r in found})))
    return " | ".join(cells)


def _device(found: dict[str, Any]) -> str:
    device = found["device"]
    if device["platform"] == "cpu":
        return f"{device['kind']}, {device['cpu_cores']} cores"
    return f"{device['count']} {device['kind']}"


def crossing_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Returns where our running training curve passes the study's accuracy, as Markdown."""
    lines = [
        "| Experiment | The study: accuracy, loss | Ours passes it after epoch | "
        "running train accuracy, loss | valid accuracy, loss then |",
        "|---|---|---|---|---|",
    ]
    for name, (accuracy, loss, _) in PAPER.items():
        for found in runs.get(name, [])[:1]:
            row = crossing(found["history"], accuracy)
            cells = [f"not within {found['epochs_run']} epochs", "", ""]
            if row:
                cells = [str(row["epoch"])] + [
                    f"{row[f'{split}/accuracy']:.3f}, {row[f'{split}/loss']:.3f}"
                    for split in ("train_running", "valid")
                ]
            lines.append(
                f"| `{name}`, seed {found['seed']} | {accuracy:.3g}, {loss:.3g} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(lines)


def replace_between(text: str, name: str, content: str) -> str:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
      ValueError: if the markers are not there.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise ValueError(f"no {begin} ... {end}")
    head, rest = text.split(begin, 1)
    _, tail = rest.split(end, 1)
    return f"{head}{begin}\n{content}\n{end}{tail}"


def updated_readme(text: str) -> str:
    """Returns README.md's text with its tables made anew from the records."""
    runs = load_runs()
    text = replace_between(text, "paper", paper_table(runs))
    return replace_between(text, "crossing", crossing_table(runs))


def main() -> None:
    """Brings README.md up to date."""
    path = ROOT / "README.md"
    path.write_text(updated_readme(path.read_text()))


if __name__ == "__main__":
    main()
