"""Files to arrays: pictures as people have them, upright and in RGB."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fer_jax.data import pictures
from fer_jax.errors import PictureError

# What a folder is searched for; a file that is named is read whatever it is called.
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg"),
        *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    )
)

# Brands of ISO 14496-12 files that ISO 23008-12 (HEIF) defines for HEVC pictures.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def decode(path: Path) -> np.ndarray:
    """Reads a picture as a viewer would show it, by the rule of :mod:`fer_jax.data.pictures`.

    Args:
      path: a file of JPEG, PNG, BMP, WebP, GIF, TIFF or PNM, whatever the ending of its name; of
        AVIF or HEIC, where Pillow has a decoder.

    Returns:
      `[height, width, 3]` uint8, RGB.

    Raises:
      PictureError: if there is no such file, or it is no picture, is damaged, or has more pixels
        than `PIL.Image.MAX_IMAGE_PIXELS` (89 million), as decompression bombs do.
    """
    if os.path.isdir(path):  # unlike is_dir(), also of a name that is too long
        raise PictureError(f"{path} is a folder, not a picture")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise PictureError(f"{path} is empty")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        _read_heic_too(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a metadata block that is cut, say
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                shown = pictures.to_8_bit(image)
                return np.asarray(shown if shown.mode == "RGB" else shown.convert("RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path} is not a picture of a format that is read here: {', '.join(_formats())}"
        ) from error
    except Exception as error:  # a decoder of a damaged file raises almost anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PictureError(f"{path} is damaged or of an unusual kind: {reason}") from error


def _read_heic_too(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise PictureError(
            f"{path} is a HEIC picture; `pip install pillow-heif` to read such files"
        ) from None
    register_heif_opener()


def _formats() -> list[str]:
    """Returns the formats that are tried: none that would start a program."""
    Image.init()  # registers them
    return [name for name in (*pictures.FORMATS, "AVIF", "HEIF") if name in Image.OPEN]
