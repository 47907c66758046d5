"""Markdown: tables, and blocks of a document that are made anew while the prose around them stays.

A block stands between `<!-- name:begin -->` and `<!-- name:end -->`, each on a line of its own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fer_jax.errors import DocumentError

_MARKER = re.compile(r"<!-- ([\w-]+):(begin|end) -->")


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]], text: Sequence[int] = ()) -> str:
    """Formats a table.

    Args:
      header: the columns' headings.
      rows: each as long as the header; cells are shown with `str`.
      text: numbers of columns that are aligned left; the first always is, the others are aligned
        right.
    """
    rule = ["---" if column in (0, *text) else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, rule, *rows))


def replace_block(text: str, name: str, content: str) -> str:
    """Returns a document with one block made anew.

    Raises:
      DocumentError: if there is no such block.
    """
    if name not in block_names(text):
        raise DocumentError(f"there is no block <!-- {name}:begin --> ... <!-- {name}:end -->")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{content}\n{end}{tail}"


def replace_blocks(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """Returns a document with all its blocks made anew.

    Args:
      text: the document.
      makers: block -> function that returns its content.

    Raises:
      DocumentError: if a block has no maker, or a maker no block.
    """
    there = block_names(text)
    unknown, absent = sorted(set(there) - set(makers)), sorted(set(makers) - set(there))
    if unknown:
        known = ", ".join(sorted(makers))
        raise DocumentError(f"nothing makes the block {unknown[0]!r}; there are {known}")
    if absent:
        raise DocumentError(
            f"there is no block for {', '.join(map(repr, absent))}; where it should stand, add "
            f"<!-- {absent[0]}:begin --> and <!-- {absent[0]}:end -->"
        )
    for name in there:
        text = replace_block(text, name, makers[name]())
    return text


def block_names(text: str) -> list[str]:
    """Returns the names of a document's blocks, in its order.

    Raises:
      DocumentError: if blocks do not begin and end one after another, or a name stands twice.
    """
    names: list[str] = []
    opened = None
    for name, end in _MARKER.findall(text):
        if end == "begin" and opened is None and name not in names:
            names.append(name)
            opened = name
        elif end == "end" and name == opened:
            opened = None
        else:
            raise DocumentError(
                f"<!-- {name}:{end} --> is out of place: blocks begin and end one after another, "
                "and each name stands once"
            )
    if opened:
        raise DocumentError(f"there is no <!-- {opened}:end -->")
    return names
