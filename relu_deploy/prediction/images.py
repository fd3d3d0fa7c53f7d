"""Decoding of picture files that nobody has checked: upright, in 8-bit RGB or gray.

The size is read from the header and checked before any pixel is decoded: a few bytes can declare gigabytes. An animation
gives its first frame; transparent pixels are put on white, as most viewers show them; 16 bits are scaled to 8.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.prediction.errors import PictureTooLarge

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "MAX_PIXELS", "decode_picture"]

#: Pillow's names of the formats that are accepted; it looks for no other
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: most pixels of one picture by default
MAX_PIXELS = 40_000_000


def decode_picture(file: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Decode a picture.

    Args:
        file: Content of a JPEG, PNG, WebP or BMP file.
        channels: 1 for mode L, 3 for mode RGB.
        max_pixels: Width times height, at most.

    Returns:
        The picture, rotated by its EXIF orientation, and the name of its format.

    Raises:
        PictureTooLarge: If it has more pixels; nothing has been decoded then.
        InputError: If it is not a picture, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise PictureTooLarge(
                    f"a picture of {opened.width}x{opened.height} pixels exceeds the limit of {max_pixels}", "make it smaller"
                )
            name = opened.format or ""
            opened.load()
            return _to_bytes(_upright(opened), "L" if channels == 1 else "RGB"), name
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise PictureTooLarge(f"the picture exceeds the limit of {max_pixels} pixels", "make it smaller") from None
    except UnidentifiedImageError:
        raise InputError("this is not a JPEG, PNG, WebP or BMP picture", "convert it to one of these") from None
    except Exception as error:  # Pillow raises a dozen types for a damaged picture
        raise InputError(f"the picture is damaged: {' '.join(str(error).split())[:200]}", "replace it") from None


def _upright(picture: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # the metadata are damaged, the picture is not
        return picture


def _to_bytes(picture: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith("I"):
        # Pillow's conversion clips at 255.
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return picture.convert(mode)
