"""What a file that should hold weights is, by its first bytes."""

import zipfile
from pathlib import Path

from fer_jax.errors import WeightsError


def check(path: Path) -> None:
    """Checks that there is a file, and that it is not plainly something else.

    Nothing in it is unpickled.

    Raises:
      WeightsError: saying what it is and what to do: missing, a folder, empty, a Git LFS pointer,
        a web page, a zip archive (of Keras 3, of PyTorch, any other) or a pickle.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    what = _what(path, head)
    if what:
        raise WeightsError(f"{path} is {what}")


def _what(path: Path, head: bytes) -> str | None:
    text = head.lstrip().lower()
    if not head:
        return "empty: fetch it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself: `git lfs pull` in its repository fetches it"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not weights: download the file itself (on GitHub, the raw file)"
    if head.startswith(b"PK\x03\x04"):
        return _which_zip(path)
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which is never loaded: it could run any program"
    return None


def _which_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a zip archive that was cut off: fetch it again"
    if "model.weights.h5" in names:
        return "a `.keras` archive of Keras 3: load it in Keras and save it with a name in .h5"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file, which is pickled and never loaded: it could run any program"
    return "a zip archive: unpack it first"
