"""One picture and one model's input: how it is resized and cropped to fit, and the way back for boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.tensors import Array, Dim, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "MAX_PIXELS", "MAX_SIDE", "ImagePlacement", "place", "plane_of"]

#: Most pixels of a picture: one with more is a decompression bomb or not meant for a network.
MAX_PIXELS = 100_000_000
#: Longest side of a picture: resizing one that is a single pixel wide takes many times the memory of its pixels.
MAX_SIDE = 65_535
#: Pillow's names of the formats that are read; other decoders, such as that of PostScript, are not tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")


@dataclass(frozen=True)
class ImagePlacement:
    """Where a picture lies in a model's input: scaled, then cut off at the left and the top.

    picture, size: width and height of the picture, and of the input. scale: along x and y. offset: pixels cut off at the
    left and the top after scaling, negative where some were added.
    """

    picture: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def to_picture(self, boxes: Array) -> Array:
        """Return `boxes`, (D, 4) xyxy in the input's pixels, in the picture's own, float64, no further than its edges."""
        corners = (boxes.reshape(-1, 2, 2).astype(np.float64) + self.offset) / self.scale
        return corners.clip(0, self.picture).reshape(-1, 4)

    def plane_to_picture(self, plane: Array, outside: int) -> Array:
        """Return `plane`, (h, w) over the whole input whatever its size, for each of the picture's pixels, (height, width).

        A pixel gets the number of the place its center lies at, `outside` where the input does not show it.
        """
        places = []
        for axis, points in ((1, plane.shape[0]), (0, plane.shape[1])):
            centers = (np.arange(self.picture[axis]) + 0.5) * self.scale[axis] - self.offset[axis]
            places.append(np.floor(centers * points / self.size[axis]).astype(np.int64))
        (rows, columns), result = places, np.full(self.picture[::-1], outside, plane.dtype)
        down, across = ((one >= 0) & (one < points) for one, points in zip(places, plane.shape, strict=True))
        result[np.ix_(down, across)] = plane[np.ix_(rows[down], columns[across])]
        return result

    @property
    def seen(self) -> tuple[float, ...]:
        """Return the part of the picture that the input shows, xyxy in its pixels."""
        whole = np.array([[0, 0, *self.size]])
        return tuple(self.to_picture(whole)[0].tolist())


def plane_of(spec: TensorSpec, steps: Mapping[str, Any]) -> tuple[Dim, Dim, Dim]:
    """Return channels, height and width of a picture input, each a name where it may vary; 0, 0, 0 for any other input."""
    if len(spec.shape) != 4:
        return 0, 0, 0
    last = spec.dtype == "uint8" or steps.get("layout") == "NHWC"
    _, *sizes = spec.shape
    return (sizes[2], sizes[0], sizes[1]) if last else (sizes[0], sizes[1], sizes[2])


def place(
    picture: Image.Image, spec: TensorSpec, steps: Mapping[str, Any], most: int = MAX_PIXELS
) -> tuple[Array, ImagePlacement]:
    """Return the picture's pixels as the input wants them, uint8 (1, H, W, C), and where they came from.

    steps: the manifest's `preprocess`: with `crop`, the shorter side becomes `resize` (or `crop`) and the middle is cut
    out; else the picture is stretched to the input's size. picture: of mode L or RGB.
    Raises InputError when it is so elongated that it would be resized to more than `most` pixels.
    """
    from PIL import Image

    _, height, width = plane_of(spec, steps)
    own, offset = picture.size, (0, 0)
    resized = own
    if "crop" in steps:
        side = steps.get("resize", steps["crop"]) / min(own)
        resized = (round(own[0] * side), round(own[1] * side))
        if resized[0] * resized[1] > most:
            raise InputError(f"a picture of {own[0]}x{own[1]} pixels is too elongated for the model", "crop it first")
        picture = picture.resize(resized, Image.Resampling.BILINEAR)
        offset = ((resized[0] - steps["crop"]) // 2, (resized[1] - steps["crop"]) // 2)
        picture = picture.crop((*offset, offset[0] + steps["crop"], offset[1] + steps["crop"]))
    elif isinstance(height, int) and isinstance(width, int):
        resized = (width, height)
        picture = picture.resize(resized, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    scale = (resized[0] / own[0], resized[1] / own[1])
    return pixels.reshape(1, *pixels.shape[:2], -1), ImagePlacement(own, picture.size, scale, offset)
