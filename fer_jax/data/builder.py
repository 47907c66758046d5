"""What the TFDS builders share: a split is written as TFDS's records and as arrays."""

import contextlib
import errno
import logging
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fer_jax.data.arrays import write_arrays
from fer_jax.data.dataset import Examples
from fer_jax.labels import CLASSES, SIDE, SPLITS

log = logging.getLogger("fer_jax")


class ArraysMixin:
    """Makes a `tfds.core.GeneratorBasedBuilder` write its splits as arrays too.

    A builder inherits from this first, sets `VERSION` from `VERSIONS` and gives `read_splits`.
    TFDS works in a temporary folder that it renames at the end, so a failure leaves nothing; what
    a killed process leaves goes when the same data set is prepared the next time.
    """

    # TFDS downloads nothing here. Looking its checksums up imports importlib_resources, which TFDS
    # 4.9.10 declares only for Python < 3.9.
    url_infos = None

    def read_splits(self) -> tuple[Mapping[str, Examples], str]:
        """Returns split -> (images, labels, ids), shaped as in `Split`, and a SHA-256."""
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...]:
        """Returns the classes in the order of the labels."""
        return CLASSES

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(self.class_names())),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,  # pyright: ignore[reportArgumentType]
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of the arrays
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing to download
        splits, sha256 = self.read_splits()
        builder: Any = self
        kind = builder.builder_config.name if builder.builder_config else builder.name
        source = {"name": builder.name, "kind": kind, "sha256": sha256}
        write_arrays(Path(builder.data_dir) / "arrays", splits, source, self.class_names())
        return {split: self._generate_examples(*splits[split]) for split in SPLITS}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, ids: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i, image in enumerate(images):
            yield i, {"image": _encode_png(image), "label": int(labels[i]), "id": ids[i]}

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Prepares the data set, or uses what another process has prepared in the meantime."""
        builder: Any = self
        folder = Path(builder.data_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent / f".{folder.name}.lock") as alone:
            for leftover in folder.parent.glob(f"incomplete.*_{folder.name}") if alone else ():
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                super().download_and_prepare(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
            except OSError:
                if not folder.exists():
                    raise
            builder.info.read_from_directory(builder.data_dir)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Waits until no other process holds the file; False where files cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with path.open("a", encoding="utf-8") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Waiting for another process that prepares %s ...", path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            yield False  # a file system without locks
        else:
            yield True


def _encode_png(image: np.ndarray) -> bytes:
    """Returns `[48, 48, 1]` uint8 as a PNG file, not compressed.

    By hand, because Pillow's overhead per file would dominate preparing, and TFDS's own encoder
    runs a TensorFlow graph. Format: RFC 2083.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter, 0: none
    rows[:, 1:] = image[..., 0]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8-bit grey, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
