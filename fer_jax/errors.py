"""Errors that a user can cause, and mend.

Each message is one line, or a short list, that names what and where and says what to do next. The
command line prints it and ends; everything else that is raised is a defect and keeps its traceback.
"""

import errno
from pathlib import Path


class FerError(Exception):
    """Base of all expected errors."""


def reason(error: OSError) -> str:
    """Returns why something could not be written or read, without its path."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file stands where a folder should"
    return error.strerror or str(error)


class ConfigError(FerError, ValueError):
    """A field, or a combination of fields, makes no sense; the message names it."""


class DataError(FerError, ValueError):
    """A source or a prepared dataset is not what it should be; the message names the place."""


class TrainingError(FerError, RuntimeError):
    """A run cannot start, go on or finish."""


class CheckpointError(FerError, RuntimeError):
    """A checkpoint could not be written or read."""


class WorkdirError(FerError, RuntimeError):
    """A run's folder cannot be used."""


class RecordError(FerError, ValueError):
    """A record cannot be read, or is not what it should be."""


class DocumentError(FerError, ValueError):
    """A document lacks a block that is to be made, or has one that nothing makes."""


class WeightsError(FerError, ValueError):
    """A file of weights is missing, damaged, or of another network."""


class BenchmarkError(FerError, RuntimeError):
    """A measurement failed."""


class PictureError(FerError, ValueError):
    """A picture, a video or a camera cannot be read; the message names it."""


class CopyError(FerError):
    """One annotated copy cannot be written; the message names it."""


def unwritable_copy(path: Path, error: OSError) -> FerError:
    """Returns what to raise where an annotated copy cannot be written.

    A :class:`CopyError`; of a full disk, which has no place for other copies either, its base.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FerError(f"cannot write {path}: {reason(error)}")
    return CopyError(f"cannot write {path}: {reason(error)}; see --out=DIR")


class ExtraError(FerError, ImportError):
    """What was asked for needs an optional package; the message says how to install it."""
