"""Trained weights, from files; and where those lie that come with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
IN_REPOSITORY = _PACKAGE.parent / "checkpoints" / "pretrained"
SHIPPED = (_PACKAGE / "pretrained", IN_REPOSITORY)  # the first is in a wheel
