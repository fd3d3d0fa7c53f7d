"""The position of a picture in a model's input, and the way back: boxes and planes of the input in pixels of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["ImagePlacement"]


@dataclass(frozen=True)
class ImagePlacement:
    """The position of a picture in a model's input: it is scaled, then cropped or padded.

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
