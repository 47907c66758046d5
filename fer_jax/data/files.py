"""Files as people keep them: in folders, zip, tar, gzip, bzip2 or xz, or one of these in another.

What a file is, its first bytes say, never its name. Nothing is unpacked onto the disk, no name may
lead out of its archive, and every stream ends after `MAX_BYTES`, so that no archive can fill the
memory. Whatever cannot be read is a `DataError` that names the file and the member.
"""

import bz2
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fer_jax.errors import DataError

MAX_BYTES = 2**30  # of a stream, unpacked; the published CSV has about 300 MB
_MAX_MEMBERS = 500_000  # of a folder or an archive
_MAX_DEPTH = 8  # folders in folders
_HEAD_BYTES = 2**16  # that a peek can see

_FORMS = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),  # an empty one
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
_UNPACK = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_LEFTOVERS = {  # of operating systems, in lower case; names that begin with a dot besides
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"),
    *("$recycle.bin", "system volume information"),
}


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a folder or an archive.

    Attributes:
      name: below the folder or in the archive, parted by "/"; "" for what a compressed file holds.
      place: as it may stand in a message.
      size: bytes; None where only reading tells.
      open: opens it; of a tar, before the next member is asked for.
    """

    name: str
    place: str
    size: int | None
    open: Callable[[], io.BufferedReader]

    def read(self, limit: int) -> bytes:
        """Returns its bytes; raises a DataError if there are none, or more than `limit`."""
        if self.size is None or 0 < self.size <= limit:
            with self.open() as file:
                data = file.read(limit + 1)
            size = len(data)
        else:
            data, size = b"", self.size
        if not 0 < size <= limit:
            raise DataError(f"{self.place} has {size} bytes, allowed are 1 to {limit}")
        return data


def check_path(path: Path) -> None:
    """Raises a DataError unless there is a file or a folder."""
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist{' (a broken link)' * path.is_symlink()}")
        if not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is neither a file nor a folder")
    except OSError as error:
        raise unreadable(path, error) from error


def open_file(path: Path) -> io.BufferedReader:
    """Opens a file on the disk."""
    try:
        return io.BufferedReader(io.FileIO(path), _HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Returns the error of a file that the operating system does not let be read."""
    return DataError(f"cannot read {error.filename or path}: {error.strerror or error}")


def form_of(file: io.BufferedReader) -> str | None:
    """Returns what wraps a file's content, "zip", "gzip", "bzip2", "xz" or "tar", or None."""
    head = file.peek(_HEAD_BYTES)
    for magic, form in _FORMS:
        if head.startswith(magic):
            return form
    return "tar" if _is_tar(head[:512]) else None


def _is_tar(block: bytes) -> bool:
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name)
    except tarfile.HeaderError:  # the sum in the header is not that of the header
        return False


def members(place: str, file: io.BufferedReader, form: str) -> Iterator[Member]:
    """Yields what an archive holds, without what operating systems leave behind.

    Args:
      place: the archive, for messages.
      file: the archive, at its beginning.
      form: from `form_of`.
    """
    if form == "zip":
        return _zip_members(place, file)
    if form == "tar":
        return _tar_members(place, file)
    return _unpacked(place, file, form)


def folder_members(path: Path) -> Iterator[Member]:
    """Yields the files of a folder, in the order of their names."""
    files: dict[str, Path] = {}

    def walk(folder: Path, prefix: str, depth: int) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_visible(entry.name):
                    continue
                if entry.is_dir():
                    if depth < _MAX_DEPTH:
                        walk(folder / entry.name, f"{prefix}{entry.name}/", depth + 1)
                    continue
                files[prefix + entry.name] = folder / entry.name
                if len(files) > _MAX_MEMBERS:
                    raise DataError(
                        f"{path}: over {_MAX_MEMBERS} files; give the folder of the data itself"
                    )

    try:
        walk(path, "", 1)
    except OSError as error:
        raise unreadable(path, error) from error
    for name in sorted(files):
        place = f"{path}: {name!r}"
        if not files[name].is_file():
            raise DataError(f"{place} is not a file")

        def open_member(file: Path = files[name]) -> io.BufferedReader:
            return open_file(file)

        yield Member(name, place, files[name].stat().st_size, open_member)


def is_visible(name: str) -> bool:
    """Returns whether a file is not one that an operating system leaves behind."""
    return not any(p.startswith(".") or p.lower() in _LEFTOVERS for p in name.split("/"))


def _clean_name(place: str, name: str) -> str:
    """Returns a member's name parted by "/"; refuses one that leads out of the archive."""
    name = name.replace("\\", "/")  # as some programs for Windows write it
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
        raise DataError(f"{place}: member {name!r} leads out of the archive")
    return "/".join(parts)


def _zip_members(place: str, file: IO[bytes]) -> Iterator[Member]:
    try:
        with _seekable(file) as seekable, zipfile.ZipFile(seekable) as archive:
            infos: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = _clean_name(place, info.filename)
                if info.is_dir() or info.filename.endswith("\\") or not is_visible(name):
                    continue
                if name in infos:
                    raise DataError(f"{place}: {name!r} is there twice")
                infos[name] = info
            _check_number(place, len(infos))
            for name in sorted(infos):
                yield _zip_member(place, archive, name, infos[name])
    except DataError:
        raise
    except Exception as error:  # zipfile raises many things on damaged files
        raise _not_whole(place, "zip", error) from error


@contextlib.contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Copies a stream that cannot go back: a zip has its list of members at its end."""
    if file.seekable():
        yield file
        return
    with tempfile.SpooledTemporaryFile(2**26) as whole:
        shutil.copyfileobj(file, whole, 2**20)
        yield whole


def _zip_member(place: str, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Member:
    place = f"{place}: {name!r}"

    def open_member() -> io.BufferedReader:
        if info.flag_bits & 1:
            raise DataError(f"{place} is encrypted")
        try:
            return _limited(place, archive.open(info))
        except Exception as error:  # see _zip_members
            raise _broken(place, error) from error

    return Member(name, place, info.file_size, open_member)


def _tar_members(place: str, file: IO[bytes]) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for number, info in enumerate(archive):
                name = _clean_name(place, info.name)
                _check_number(place, number)
                if not info.isdir() and is_visible(name):
                    yield _tar_member(place, archive, name, info)
        while file.read(2**20):  # to its end, where a compressed file has its checksum
            pass
    except DataError:
        raise
    except Exception as error:  # tarfile raises many things on damaged files
        raise _not_whole(place, "tar", error) from error


def _tar_member(place: str, archive: tarfile.TarFile, name: str, info: tarfile.TarInfo) -> Member:
    place = f"{place}: {name!r}"

    def open_member() -> io.BufferedReader:
        file = archive.extractfile(info) if info.isfile() else None
        if file is None:
            raise DataError(f"{place} is not a file")
        return _limited(place, file)

    return Member(name, place, info.size, open_member)


def _unpacked(place: str, file: IO[bytes], form: str) -> Iterator[Member]:
    yield Member("", place, None, lambda: _limited(place, _UNPACK[form](file), form))


def _check_number(place: str, number: int) -> None:
    if number > _MAX_MEMBERS:
        raise DataError(f"{place}: over {_MAX_MEMBERS} files")


class _Limited(io.RawIOBase):
    """A stream that ends with an error after `MAX_BYTES`; what it raises is a `DataError`."""

    def __init__(self, place: str, stream: IO[bytes], form: str | None):
        self._place, self._stream, self._form = place, stream, form
        self._left = MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            data = self._stream.read(len(buffer))
        except DataError:
            raise
        except Exception as error:  # many things on damaged files
            if self._form:
                raise _not_whole(self._place, self._form, error) from error
            raise _broken(self._place, error) from error
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._place} unpacks to over {MAX_BYTES} bytes")
        buffer[: len(data)] = data
        return len(data)


def _limited(place: str, stream: IO[bytes], form: str | None = None) -> io.BufferedReader:
    return io.BufferedReader(_Limited(place, stream, form), _HEAD_BYTES)


def _not_whole(place: str, form: str, error: Exception) -> DataError:
    return DataError(f"{place}: not a whole {form} file ({error!r}); copy or download it again")


def _broken(place: str, error: Exception) -> DataError:
    return DataError(f"{place} cannot be read ({error!r}); copy or download the file again")
