"""docs/reliability.md: its block, and the record that it is made of.

The programs that measure it, `tests/fuzz.py`, `tests/kills.py` and `benchmarks/checksums.py`, keep
a part each of `results/reliability.json`.
"""

from pathlib import Path
from typing import Any

from fer_jax.report import markdown
from fer_jax.runs import workdir
from fer_jax.study.plan import ROOT

RECORD = ROOT / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


def add(path: Path, part: dict[str, Any]) -> None:
    """Puts fields into a record in place of those of the same names; the others stay.

    Args:
      path: the record, made if it is missing.
      part: `seed` and `damages`, `kills`, or `cpu_s`.
    """
    workdir.write_json(path, (workdir.read_json(path) or {}) | part)


def updated_page(text: str, record: Path = RECORD) -> str:
    """Returns docs/reliability.md's text with its block made anew."""
    found: Any = workdir.read_json(record)
    return markdown.replace_block(text, "damages", f"{_damages(found)}\n\n{_rest(found)}")


def _damages(found: dict[str, Any]) -> str:
    names = ("damages", "noticed", "harmless", "undetectable", "wrong")
    rows = dict(found["damages"])
    rows["all"] = {name: sum(row[name] for row in rows.values()) for name in names}
    header = ("Kind of file", "Damages", "Noticed", "Harmless", "Cannot be known", "Wrong")
    return markdown.table(header, [[kind, *(row[n] for n in names)] for kind, row in rows.items()])


def _rest(found: dict[str, Any]) -> str:
    kills, cpu_s = found["kills"], found["cpu_s"]
    return (
        f"Of {kills['kills']} kills {kills['before_the_end']} came before the run's end, "
        f"{kills['after_test_was_opened']} of them with test opened and no record yet; "
        f"{kills['wrong']} ended otherwise than the run left alone.\n\n"
        f"Checking hashes takes {cpu_s['share']:.1%} of a start's {cpu_s['start']:.1f} CPU seconds "
        f"(FER2013's arrays {cpu_s['arrays'] * 1e3:.0f} ms, a checkpoint of Architecture 02 "
        f"{cpu_s['checkpoint'] * 1e3:.0f} ms, the library {cpu_s['library'] * 1e3:.1f} ms)."
    )
