"""Decoding of untrusted pictures: from a request's body to an upright picture in 8-bit RGB or gray.

The size is read from the header and checked before any pixel is decoded: a few bytes can claim gigabytes. Of an animation the
first frame is decoded; transparent pixels are blended with white, as most viewers do; 16 bits are scaled to 8.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from relu_deploy.errors import missing_package
from relu_deploy.serving.errors import InvalidArgument, TooLarge

__all__ = ["FORMATS", "PictureLimits", "decode_picture", "file_of"]

#: Pillow's names of the supported formats; other decoders are not tried
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
FORMAT_NAMES = "JPEG, PNG, WebP or BMP"
#: parts of a form; each costs time, even an empty one
MAX_PARTS = 16


@dataclass(frozen=True)
class PictureLimits:
    """The limits of picture decoding.

    Attributes:
        max_pixels: Of one picture, at most Pillow's own limit (178,956,970).
        max_side: Pixels of its width or height: a long strip of few pixels takes as much memory as a large picture to resize.
        max_frames: Of an animation, of which the first is used.
        decoders: Pictures that are decoded at a time.
        waiting: Further pictures that may wait for that.
    """

    max_pixels: int = 40_000_000
    max_side: int = 16_384
    max_frames: int = 1_000
    decoders: int = 2
    waiting: int = 64


def file_of(body: bytes, content_type: str) -> bytes:
    """Return the picture file in `body`: the body itself, or the one file of a multipart/form-data form.

    Raises:
        InvalidArgument: For another content type, a malformed form, or a form with no or several files.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = _file_of_form(body, content_type)
    elif kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise InvalidArgument(
            f"content type {kind!r} is not supported",
            "send a picture as image/* or application/octet-stream, or a form with one file",
        )
    if not body:
        raise InvalidArgument("there is no picture in the body", f"send a {FORMAT_NAMES} file")
    return body


def decode_picture(file: bytes, channels: int, limits: PictureLimits) -> tuple[Image.Image, str]:
    """Return the picture in `file`, upright, of mode L for one channel and RGB for three, and its format's name.

    Raises:
        TooLarge: For too many pixels, before they are decoded.
        InvalidArgument: For a file that is not a picture or is damaged.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if opened.width * opened.height > limits.max_pixels:
                size = f"{opened.width}x{opened.height}"
                raise TooLarge(f"a picture of {size} pixels exceeds the limit of {limits.max_pixels}", "make it smaller")
            if max(opened.size) > limits.max_side:
                raise TooLarge(f"a side of {max(opened.size)} pixels exceeds the limit of {limits.max_side}", "make it smaller")
            if (frames := getattr(opened, "n_frames", 1)) > limits.max_frames:
                raise TooLarge(f"an animation of {frames} frames exceeds the limit of {limits.max_frames}", "send one frame")
            name = opened.format or ""
            opened.load()
            return _in_bytes(_upright(opened), "L" if channels == 1 else "RGB"), name
    except TooLarge:
        raise
    except Image.DecompressionBombError:
        raise TooLarge(f"the picture exceeds the limit of {limits.max_pixels} pixels", "make it smaller") from None
    except UnidentifiedImageError:
        raise InvalidArgument(f"this is not a {FORMAT_NAMES} picture", "convert it to one of these") from None
    except Exception as error:  # Pillow raises a dozen types for a damaged picture
        raise InvalidArgument(f"the picture is damaged: {' '.join(str(error).split())[:200]}") from None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged metadata of an intact picture
        return picture


def _in_bytes(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow's own conversion clips at 255.
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return picture.convert(mode)


def _file_of_form(body: bytes, content_type: str) -> bytes:
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import File, create_form_parser
    except ImportError as error:
        raise missing_package("python-multipart", "serve") from error
    files: list[Any] = []
    parts = 0

    def found(part: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise InvalidArgument(f"the form has more than {MAX_PARTS} parts", "send one picture at a time")
        if isinstance(part, File):
            files.append(part)

    # In memory throughout: the limit of the body is the form's, too.
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode("latin-1")}, found, found, config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidArgument(f"the body is not the form that its content type declares: {error}") from None
    if len(files) != 1:
        raise InvalidArgument(f"the form has {len(files)} files", "send one picture at a time, as a part with a file name")
    stream = files[0].file_object
    stream.seek(0)
    return bytes(stream.read())
