"""Pictures of any size, format and colour -> 48x48 grey, by one rule for training and prediction.

1. The first frame is taken, and turned upright as its EXIF orientation says.
2. What is transparent shows white, as in a viewer. 16-bit grey is divided by 257 and rounded; of
   16 bits a colour Pillow keeps the upper 8. Grey levels of no known range (32-bit, signed or
   floating-point) are refused. CMYK and the like are converted by Pillow, without colour profiles.
3. Colours become grey by ITU-R 601's luminance, (299 R + 587 G + 114 B) / 1000.
4. The largest square in the middle is cut out: nothing is stretched.
5. It is resized to 48x48, each new pixel a triangle-weighted mean of the old ones below it
   (Pillow's `BILINEAR`). A 48x48 picture stays as it is, to the bit.

Faces that are found in a picture are cut out otherwise: see `fer_jax.apps.crop`.
"""

import contextlib
import io

import numpy as np

from fer_jax.errors import DataError
from fer_jax.labels import SIDE

# What Pillow decodes by itself; others would start programs, or are no pictures.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM")
# Formats whose grey levels are 16-bit, at most, where Pillow holds them in 32 bits (mode `I`).
_16_BIT_AS_32 = ("PNG", "PPM")
_MAX_PIXELS = 100_000_000


def read_face(place: str, data: bytes) -> np.ndarray:
    """Decodes a picture of a face.

    Args:
      place: names it in messages.
      data: a file of JPEG, PNG, BMP, WebP, GIF, TIFF or PNM.

    Returns:
      `[48, 48, 1]` uint8.

    Raises:
      DataError: if it cannot be decoded, or is over 100 megapixels.
    """
    from PIL import Image

    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        raise DataError(f"{place} is a HEIC picture; save it as JPEG or PNG")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{place} has {image.width}x{image.height} pixels, allowed are 1e8")
            grey = to_8_bit(image).convert("L")
    except DataError:
        raise
    except Exception as error:  # Pillow raises many things on damaged files
        raise DataError(
            f"{place} is not a picture that can be read ({error!r}); mend it or move it away"
        ) from error
    return fit(np.asarray(grey))[..., None]


def to_8_bit(image):
    """Returns a picture upright, on white, in mode `L` or `RGB`; steps 1 and 2.

    Args:
      image: a Pillow image, just opened. It is changed and, where nothing else is to be done,
        returned: a copy of a large one takes hundreds of megabytes.

    Raises:
      ValueError: for grey levels of no known range; and what Pillow raises on damaged files.
    """
    from PIL import Image, ImageOps

    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data tell no orientation
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point grey levels, whose range is not known")
    if image.mode == "I" and image.format not in _16_BIT_AS_32:
        raise ValueError("32-bit or signed grey levels, whose range is not known")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_16_bit(image):
    from PIL import Image

    values = np.asarray(image).astype(np.int32)
    grey = ((values + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:  # the one level that is transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def fit(grey: np.ndarray) -> np.ndarray:
    """Returns the middle of a grey picture as the network takes it; steps 4 and 5.

    Args:
      grey: `[height, width]` uint8.

    Returns:
      `[48, 48]` uint8.
    """
    from PIL import Image, ImageOps

    image = Image.fromarray(np.ascontiguousarray(grey))
    return np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR))
