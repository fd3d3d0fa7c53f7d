"""Resizes and crops a picture for a model's input, and maps boxes and masks back to the picture."""

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
    """The position of a picture in a model's input: it is scaled, then cropped.

    Attributes:
        picture: Width and height of the picture.
        size: Width and height of the input.
        scale: Scale along x and y.
        offset: Pixels cropped at the left and the top after scaling, negative for padding.
    """

    picture: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def to_picture(self, boxes: Array) -> Array:
        """Return boxes in pixels of the picture, clipped to its edges, float64 (D, 4) xyxy.

        Args:
            boxes: (D, 4) xyxy in pixels of the input.
        """
        corners = (boxes.reshape(-1, 2, 2).astype(np.float64) + self.offset) / self.scale
        return corners.clip(0, self.picture).reshape(-1, 4)

    def plane_to_picture(self, plane: Array, outside: int) -> Array:
        """Resample a plane over the input to the picture, (height, width), by nearest neighbor.

        Args:
            plane: (h, w), over the whole input at any resolution.
            outside: Value of the picture's pixels that are not in the input.
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
        """The part of the picture that the input shows, xyxy in pixels of the picture."""
        whole = np.array([[0, 0, *self.size]])
        return tuple(self.to_picture(whole)[0].tolist())


def plane_of(spec: TensorSpec, steps: Mapping[str, Any]) -> tuple[Dim, Dim, Dim]:
    """Return channels, height and width of a picture input, names for those that vary; 0, 0, 0 for any other input."""
    if len(spec.shape) != 4:
        return 0, 0, 0
    last = spec.dtype == "uint8" or steps.get("layout") == "NHWC"
    _, *sizes = spec.shape
    return (sizes[2], sizes[0], sizes[1]) if last else (sizes[0], sizes[1], sizes[2])


def place(
    picture: Image.Image, spec: TensorSpec, steps: Mapping[str, Any], most: int = MAX_PIXELS
) -> tuple[Array, ImagePlacement]:
    """Resize and crop a picture for an input.

    Args:
        picture: The picture, of mode L or RGB.
        spec: Specification of the input.
        steps: The manifest's `preprocess`. With `crop` the shorter side is resized to `resize` (or `crop`) and the center is
            cropped; otherwise the picture is stretched to the size of the input.
        most: Largest number of pixels after resizing.

    Returns:
        Pixels as uint8 (1, H, W, C), and the position of the picture in the input.

    Raises:
        InputError: If the picture is so elongated that it would be resized to more than `most` pixels.
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
