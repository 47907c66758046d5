"""Finds FER2013 where it was put, or fetches it."""

import re
from collections.abc import Iterator
from pathlib import Path

from fer_jax.data import kaggle
from fer_jax.data.sources import COUNTS, KINDS, Source, recognise
from fer_jax.errors import DataError

# What may hold FER2013 in TFDS's manual folder, which many data sets share.
_MANUAL_NAME = re.compile(
    r"archive\b.*|.*fer[-_ ]?2013.*|.*icml_face_data.*|.*facial[-_ ]expression.*", re.IGNORECASE
)


def find_source(data_dir: Path, kind: str | None = None) -> Source:
    """Finds a source in TFDS's manual folder, in kagglehub's cache, else fetches the JPEG mirror.

    Args:
      data_dir: TFDS's; the manual folder is `downloads/manual` in it.
      kind: one of `KINDS`, or None for the first there is, in that order.

    Raises:
      DataError: saying how to get the data, if there is none.
    """
    manual = data_dir / "downloads" / "manual"
    found, problems = [], []
    for path in _candidates(manual):
        try:
            found.append(recognise(path))
        except DataError as error:
            problems.append(str(error))
    found = [source for source in found if kind in (None, source.kind)]
    if found:
        return min(found, key=lambda source: KINDS.index(source.kind))
    if kind in (None, "jpeg"):
        for source in _kagglehub_copies():
            return source
        try:
            return recognise(kaggle.fetch())
        except DataError as error:
            reason = str(error)
    else:
        reason = f"kagglehub has no source of kind {kind}"
    raise DataError(
        "FER2013 was not found. Three ways to get it:\n"
        "  1. --config.data.source=PATH, to archive.zip or its extracted folder (kaggle.com/"
        f"datasets/{kaggle.KAGGLE}), fer2013.tar.gz, fer2013.csv or icml_face_data.csv;\n"
        f"  2. put one of these into {manual};\n"
        f"  3. go online: it is then fetched with kagglehub ({kaggle.KAGGLE}, no account needed). "
        f"It said: {reason}\n"
        + "".join(f"What is there is not FER2013: {problem}\n" for problem in problems[:3])
        + "With no data at all, this runs: uv run launch.py --config=experiments/quickstart.py"
    )


def _candidates(manual: Path) -> list[Path]:
    try:
        return sorted(path for path in manual.iterdir() if _MANUAL_NAME.fullmatch(path.name))
    except OSError:  # there is no such folder, or it cannot be read
        return []


def _kagglehub_copies() -> Iterator[Source]:
    """Yields the copies that can be used: those called complete, and those that are."""
    for path, is_complete in kaggle.copies():
        try:
            source = recognise(path)
            whole = is_complete or sum(map(sum, COUNTS.values())) == len(list(source.pictures()))
        except DataError as error:
            if is_complete:
                raise DataError(f"{error}. {kaggle.repair_of(path)}") from error
            continue
        if whole:
            yield source
