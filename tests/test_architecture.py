"""docs/architecture.md names what is there."""

import re

from helpers import ROOT


def _tree() -> set[str]:
    """Returns the modules that the page's tree names, as paths below `fer_jax`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.split("```")[1].partition("fer_jax/\n")[2].partition("\nbenchmarks/")[0]
    room, found = "", set()
    for line in lines.splitlines():
        if not line.startswith("    "):
            room = match[1] if (match := re.match(r"  (\w+/)", line)) else ""
        found |= {room + name for name in re.findall(r"\w+\.py", line)}
    return found


def test_the_tree_has_every_module_and_nothing_else():
    package = ROOT / "fer_jax"
    there = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    assert _tree() == {name for name in there if not name.endswith("__init__.py")}
