"""Opens a data set by its configuration, preparing it first where that has not been done."""

import contextlib
import errno
import io
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_jax.data.arrays import open_arrays
from fer_jax.data.dataset import VERSIONS, Dataset
from fer_jax.errors import DataError, reason

log = logging.getLogger("fer_jax")

_FER2013_BYTES = 180_000_000  # prepared: arrays and TFDS's records


def default_data_dir() -> Path:
    """Returns TFDS's own: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def load_dataset(config: Any) -> Dataset:
    """Opens a data set, preparing it first where that has not been done.

    Without a source, a prepared `fer2013` is used if there is one (of several kinds: the first
    in the order of `sources.KINDS`), else a source is looked for (see `find.find_source`). Of
    `folder`, faces of one's own, the only prepared one is used without a source.

    Args:
      config: `config.data` with the fields `name`, `source`, `data_dir` and `partial`.

    Raises:
      DataError: if there is no source, the source is damaged or has other than the published
        counts, the prepared arrays are damaged, they were prepared from another source, or
        something cannot be read or written.
      KeyboardInterrupt: on Ctrl-C while something is fetched or prepared, at once.
    """
    for field in ("source", "data_dir"):
        value = getattr(config, field)
        if value is not None and not str(value).strip():
            raise DataError(f"config.data.{field} is empty; give a path, or leave it out")
    data_dir = Path(config.data_dir).expanduser() if config.data_dir else default_data_dir()
    data_dir = data_dir.absolute()
    if config.name == "fer2013":
        return _load_fer2013(data_dir, config.source, config.partial)
    if config.name == "folder":
        return _load_folder(data_dir, config.source)
    if config.source is not None:
        raise DataError(f"config.data.source is {config.source!r}, but {config.name} is drawn")
    folder = data_dir / config.name / VERSIONS[config.name]
    if not folder.exists():
        log.info("Drawing faces into %s ...", folder)
        _prepare(config.name, data_dir, 50_000_000)
    return open_arrays(folder / "arrays")


def _load_fer2013(data_dir: Path, path: str | None, partial: bool) -> Dataset:
    from fer_jax.data import find, sources

    def folder(kind: str) -> Path:
        return data_dir / "fer2013" / kind / VERSIONS["fer2013"]

    suffix = sources.PARTIAL if partial else ""
    if path is None:
        for kind in sources.KINDS:
            if folder(kind + suffix).exists():
                return open_arrays(folder(kind + suffix) / "arrays")
    with _stoppable():
        source = find.find_source(data_dir) if path is None else sources.recognise(path)
    kind = source.kind + suffix
    if not folder(kind).exists():
        log.info("Preparing FER2013 from %s in %s ...", source.path, folder(kind))
        _prepare("fer2013", data_dir, _FER2013_BYTES, config=kind, source=source.path)
    dataset = open_arrays(folder(kind) / "arrays")
    sources.check_source(dataset, source, folder(kind))
    return dataset


def _load_folder(data_dir: Path, path: str | None) -> Dataset:
    from fer_jax.data.own import KIND_DIGITS, Faces

    version = VERSIONS["folder"]
    if path is None:
        prepared = sorted((data_dir / "folder").glob(f"*/{version}"))
        if len(prepared) == 1:
            return open_arrays(prepared[0] / "arrays")
        raise DataError(
            f"{len(prepared)} data sets of your own are prepared in {data_dir / 'folder'}; name "
            "yours with --config.data.source=PATH, a folder with train, valid and test"
        )
    with _stoppable():
        faces = Faces(path)
        folder = data_dir / "folder" / faces.sha256()[:KIND_DIGITS] / version
    if not folder.exists():
        log.info("Preparing %d pictures of %s in %s ...", faces.count, faces.path, folder)
        _prepare("folder", data_dir, 1_000_000 + 5_000 * faces.count, source=path)
    return open_arrays(folder / "arrays")


def _prepare(name: str, data_dir: Path, size: int, **kwargs: Any) -> None:
    """Runs the TFDS builder, which writes the arrays too.

    Args:
      name: the builder's.
      data_dir: TFDS's, absolute.
      size: bytes it will take there.
      **kwargs: the builder's other arguments.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(data_dir).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _stoppable():
            _run_builder(name, data_dir, **kwargs)
    except OSError as error:
        raise DataError(
            f"cannot prepare {name} in {data_dir}: {reason(error)}. It takes "
            f"{size / 1e6:.0f} MB there; choose another folder with --config.data.data_dir=PATH"
        ) from error


def _run_builder(name: str, data_dir: Path, **kwargs: Any) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # only warnings and errors
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is not prepared in {data_dir}, and preparing it needs the packages "
            f"tensorflow and tensorflow_datasets ({error})"
        ) from error
    from fer_jax.data import register

    register()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download of unknown size
        builder = tfds.builder(name, data_dir=str(data_dir), **kwargs)
        builder.download_and_prepare(download_config=download_config)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end it at once, whatever listens to them: nothing is to be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
