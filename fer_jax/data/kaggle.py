"""Fetches the JPEG mirror of FER2013 with kagglehub, and knows where kagglehub keeps it."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from fer_jax.data.foreign import KAGGLE
from fer_jax.errors import DataError

log = logging.getLogger("fer_jax")

_CONNECT_S, _SILENCE_S = 5.0, 15.0  # to be connected, and between two parts of an answer


def cache_folder() -> Path:
    """Returns the folder in which kagglehub keeps data sets."""
    default = Path("~/.cache/kagglehub").expanduser()
    return Path(os.environ.get("KAGGLEHUB_CACHE", default)) / "datasets"


def copies() -> list[tuple[Path, bool]]:
    """Returns kagglehub's copies, the newest version first, and whether it calls them complete."""
    folder = cache_folder() / KAGGLE
    versions = [p for p in folder.glob("versions/*") if p.is_dir() and p.name.isdigit()]
    versions.sort(key=lambda path: int(path.name), reverse=True)
    found = [(path, (folder / f"{path.name}.complete").exists()) for path in versions]
    if (folder / "train").is_dir():  # copied there by hand, or by a kagglehub without versions
        found.append((folder, True))
    return found


def repair_of(path: Path) -> str | None:
    """Returns how to repair a damaged source: of kagglehub's copies, which it fetches again."""
    if not path.absolute().is_relative_to(cache_folder().absolute()):
        return None
    return f"It is a cut download: remove {path}, and the next run fetches it again"


def fetch() -> Path:
    """Fetches the mirror and returns its folder.

    Raises:
      DataError: with the reason, for whatever the network, the site or the disk came up with.
    """
    url = f"kaggle.com/datasets/{KAGGLE}"
    log.info("Fetching FER2013 (60 MB) from %s into %s ...", url, cache_folder())
    try:
        import kagglehub

        with _time_limit():
            return Path(kagglehub.dataset_download(KAGGLE))
    except Exception as error:  # see above
        raise DataError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Sets a limit where none is given: requests waits for ever, and kagglesdk lets it."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_with_limit(self, request, stream=False, timeout=None, *args, **kwargs):
        return send(self, request, stream, timeout or (_CONNECT_S, _SILENCE_S), *args, **kwargs)

    with mock.patch.object(HTTPAdapter, "send", send_with_limit):
        yield
