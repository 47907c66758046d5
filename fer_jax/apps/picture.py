"""Files to arrays: any picture that Pillow reads, upright and in RGB."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def decode(path: Path) -> np.ndarray:
    """Reads a picture as a viewer would show it.

    The orientation that its EXIF data tell is applied. Of an animation the first frame is taken.
    What is transparent shows white; 16 bits a channel become the upper 8; CMYK and the like are
    converted by Pillow, without colour profiles.

    Args:
      path: a file, whatever the ending of its name.

    Returns:
      `[height, width, 3]` uint8, RGB.

    Raises:
      PictureError: if there is no such file, or it is no picture, is damaged, or has more pixels
        than `PIL.Image.MAX_IMAGE_PIXELS` (89 million), as decompression bombs do.
    """
    if path.is_dir():
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
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return _to_rgb(_upright(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture of a format that Pillow reads") from error
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


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # damaged EXIF data tell no orientation
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # I;16 and its like; I holds the same from some formats
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) > 255 or image.mode != "I":
            values >>= 8
        grey = np.clip(values, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))
