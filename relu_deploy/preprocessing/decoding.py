"""Decoding of picture files that nobody has checked: upright, in 8-bit RGB or gray.

The size is read from the header and checked before any pixel is decoded: a few bytes can declare gigabytes. An animation
gives its first frame; transparent pixels are put on white, as most viewers show them; 16 bits are scaled to 8.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.preprocessing.errors import PictureTooLarge

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_LIMITS", "FORMATS", "DecodeLimits", "decode_picture"]

#: Pillow's names of the formats that are accepted by default; it tries no other decoder
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True)
class DecodeLimits:
    """The largest picture that is decoded.

    Attributes:
        max_pixels: Width times height, at most Pillow's own limit (178,956,970).
        max_side: Width or height: a long strip of few pixels takes as much memory to resize as a large picture.
        max_frames: Of an animation, of which the first is used.
    """

    max_pixels: int = 40_000_000
    max_side: int = 16_384
    max_frames: int = 1_000


DEFAULT_LIMITS = DecodeLimits()


def decode_picture(
    file: bytes, channels: int, limits: DecodeLimits = DEFAULT_LIMITS, formats: tuple[str, ...] = FORMATS
) -> tuple[Image.Image, str]:
    """Decode a picture.

    Args:
        file: Content of the file.
        channels: 1 for mode L, 3 for mode RGB.
        limits: The largest picture.
        formats: Pillow's names of the accepted formats.

    Returns:
        The picture, rotated by its EXIF orientation, and the name of its format.

    Raises:
        PictureTooLarge: If it exceeds a limit; no pixel has been decoded then.
        InputError: If it is not a picture, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(file), formats=formats) as opened:
            _check_size(opened, limits)
            name = opened.format or ""
            opened.load()
            return _to_bytes(_upright(opened), "L" if channels == 1 else "RGB"), name
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise PictureTooLarge(f"the picture exceeds the limit of {limits.max_pixels} pixels", "make it smaller") from None
    except UnidentifiedImageError:
        raise InputError(f"this is not a {_listed(formats)} picture", "convert it to one of these") from None
    except Exception as error:  # Pillow raises a dozen types for a damaged picture
        raise InputError(f"the picture is damaged: {' '.join(str(error).split())[:200]}", "replace it") from None


def _listed(formats: tuple[str, ...]) -> str:
    names = ["WebP" if name == "WEBP" else name for name in formats]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_size(opened: Image.Image, limits: DecodeLimits) -> None:
    if opened.width * opened.height > limits.max_pixels:
        size = f"{opened.width}x{opened.height}"
        raise PictureTooLarge(f"a picture of {size} pixels exceeds the limit of {limits.max_pixels}", "make it smaller")
    if max(opened.size) > limits.max_side:
        raise PictureTooLarge(f"a side of {max(opened.size)} pixels exceeds the limit of {limits.max_side}", "make it smaller")
    if (frames := getattr(opened, "n_frames", 1)) > limits.max_frames:
        raise PictureTooLarge(f"an animation of {frames} frames exceeds the limit of {limits.max_frames}", "use one frame")


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
