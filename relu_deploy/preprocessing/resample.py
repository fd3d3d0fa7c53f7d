"""Resampling of pixels along rows and columns, with the arithmetic that a description names.

An output pixel is a weighted sum of pixels ("taps") along x, then of these sums along y. The weights are those of

    antialiased bilinear and bicubic    Pillow's `Resample.c`: the filter is widened by the factor that the picture shrinks by
    bilinear and bicubic                OpenCV's, PyTorch's and TensorFlow's `resize` at half-pixel centers; edge pixels are repeated
    area                                OpenCV's INTER_AREA: the share of each pixel that an output pixel covers
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relu_deploy.preprocessing.description import Resize
from relu_deploy.tensors import Array

__all__ = ["resample"]

#: bits of the weights in Pillow, in OpenCV, and of a whole weight in PyTorch's kernels for uint8, whose sign takes one of 16
PILLOW_BITS, OPENCV_BITS, PYTORCH_BITS = 22, 11, 15


@dataclass(frozen=True)
class Taps:
    """The pixels along one axis that each output pixel is made of.

    Attributes:
        indices: (outputs, taps).
        weights: float64 (outputs, taps); each row adds up to 1.
    """

    indices: Array
    weights: Array

    def restricted(self) -> tuple[Array, Taps]:
        """Return the indices that occur, in order, and the taps as places in these."""
        used, places = np.unique(self.indices, return_inverse=True)
        return used, Taps(places.reshape(self.indices.shape), self.weights)

    def merged(self) -> Taps:
        """Return the taps with the weights of an edge pixel that is repeated added up in one of them."""
        weights = self.weights.copy()
        for tap in range(1, weights.shape[1]):
            same = self.indices[:, tap] == self.indices[:, tap - 1]
            weights[same, tap] += weights[same, tap - 1]
            weights[same, tap - 1] = 0
        return Taps(self.indices, weights)


def resample(pixels: Array, size: tuple[int, int], resize: Resize) -> Array:
    """Return pixels resized to a height and a width.

    Args:
        pixels: uint8 (H, W, C).
        size: Height and width.
        resize: The interpolation, antialiasing, coordinates and rounding.

    Returns:
        (height, width, C): uint8, or float32 where the rounding is "none".
    """
    if pixels.shape[:2] == tuple(size):
        return pixels.astype(np.float32) if resize.rounding == "none" and resize.interpolation != "nearest" else pixels
    if resize.interpolation == "nearest":
        rows, columns = (_nearest(old, new, resize.coordinates) for old, new in zip(pixels.shape, size, strict=False))
        return pixels[rows[:, None], columns[None, :]]
    # OpenCV averages areas only where both sides shrink.
    shrinks = all(new <= old for old, new in zip(pixels.shape, size, strict=False))
    is_area = resize.interpolation == "area" and shrinks
    down, across = (_taps(old, new, resize, shrinks) for old, new in zip(pixels.shape, size, strict=False))
    rows, down = down.restricted()
    pixels = pixels[rows]
    if resize.rounding == "fixed_point" and not is_area:
        return _in_fixed_point(pixels, down, across)
    if resize.rounding == "per_axis" and not is_area:
        return _per_axis(_per_axis(pixels, across, 1, resize.antialias), down, 0, resize.antialias)
    result = _weighted(_weighted(pixels.astype(np.float32), across, 1), down, 0)
    return result if resize.rounding == "none" else np.rint(result).clip(0, 255).astype(np.uint8)


def _nearest(old: int, new: int, coordinates: str) -> Array:
    # In OpenCV's order of operations, which decides where the product is whole.
    factor = 1.0 / (new / old)
    places = np.arange(new) + (0.5 if coordinates == "half_pixel" else 0.0)
    return np.floor(places * factor).astype(np.intp).clip(0, old - 1)


def _taps(old: int, new: int, resize: Resize, shrinks: bool) -> Taps:
    factor = old / new
    if resize.interpolation == "area":
        return _area_taps(old, new, factor) if shrinks else _linear_taps(old, *_area_centers(old, new))
    cubic = resize.interpolation == "bicubic"
    if resize.antialias:
        return _antialiased_taps(old, new, factor, resize)
    places = np.arange(new)
    centers = (places + 0.5) * factor - 0.5 if resize.coordinates == "half_pixel" else places * factor
    if resize.rounding in ("fixed_point", "none"):
        # OpenCV and TensorFlow compute the positions in float32.
        centers = centers.astype(np.float32)
    first = np.floor(centers)
    fractions = (centers - first).astype(np.float64)
    starts = first.astype(np.int64)
    return _cubic_taps(old, starts, fractions, resize.cubic_coefficient) if cubic else _linear_taps(old, starts, fractions)


def _linear_taps(old: int, starts: Array, fractions: Array) -> Taps:
    fractions = np.where((starts < 0) | (starts >= old - 1), 0.0, fractions)
    starts = starts.clip(0, old - 1)
    indices = np.stack([starts, np.minimum(starts + 1, old - 1)], 1)
    return Taps(indices, np.stack([1 - fractions, fractions], 1))


def _cubic_taps(old: int, starts: Array, fractions: Array, a: float) -> Taps:
    distances = fractions[:, None] - np.arange(-1, 3)
    indices = (starts[:, None] + np.arange(-1, 3)).clip(0, old - 1)
    weights = _cubic(distances, a)
    return Taps(indices, weights / weights.sum(1, keepdims=True))


def _antialiased_taps(old: int, new: int, factor: float, resize: Resize) -> Taps:
    width = max(factor, 1.0)
    support = (2.0 if resize.interpolation == "bicubic" else 1.0) * width
    centers = (np.arange(new) + 0.5) * factor
    starts = np.floor((centers - support + 0.5).clip(0)).astype(np.int64)
    ends = np.floor((centers + support + 0.5).clip(None, old)).astype(np.int64)
    indices = starts[:, None] + np.arange(int((ends - starts).max()))
    distances = (indices - centers[:, None] + 0.5) / width
    bicubic = resize.interpolation == "bicubic"
    weights = _cubic(distances, resize.cubic_coefficient) if bicubic else (1 - np.abs(distances)).clip(0)
    weights = np.where(indices < ends[:, None], weights, 0.0)
    return Taps(indices.clip(0, old - 1), weights / weights.sum(1, keepdims=True))


def _cubic(distances: Array, a: float) -> Array:
    """Return the cubic convolution kernel of Keys (1981)."""
    x = np.abs(distances)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _area_taps(old: int, new: int, factor: float) -> Taps:
    edges = np.arange(new + 1) * factor
    starts = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    count = int(np.ceil(edges[1:] - 1e-9).astype(np.int64).max(initial=0) and np.ceil(factor) + 1)
    indices = starts[:, None] + np.arange(count)
    covered = np.minimum(indices + 1, edges[1:, None]) - np.maximum(indices, edges[:-1, None])
    weights = covered.clip(0)
    return Taps(indices.clip(0, old - 1), weights / weights.sum(1, keepdims=True))


def _area_centers(old: int, new: int) -> tuple[Array, Array]:
    """Return the pixels and fractions of OpenCV's INTER_AREA where a picture grows, in OpenCV's order of operations."""
    places, growth = np.arange(new), new / old
    starts = np.floor(places * (1.0 / growth)).astype(np.int64)
    fractions = ((places + 1) - (starts + 1) * growth).astype(np.float32)
    return starts, np.where(fractions <= 0, 0.0, fractions - np.floor(fractions)).astype(np.float64)


def _weighted(pixels: Array, taps: Taps, axis: int) -> Array:
    """Return the weighted sums along an axis in float32."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    weights = taps.weights.astype(np.float32)
    total = pixels.take(taps.indices[:, 0], axis) * weights[:, 0].reshape(shape)
    for tap in range(1, taps.indices.shape[1]):
        total += pixels.take(taps.indices[:, tap], axis) * weights[:, tap].reshape(shape)
    return total


def _integer_sums(pixels: Array, taps: Taps, axis: int, bits: int) -> Array:
    """Return the weighted sums along an axis with weights of `bits` binary places, int32."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    weights = np.rint(taps.weights * (1 << bits)).astype(np.int32)
    total = np.int32(0)
    for tap in range(taps.indices.shape[1]):
        total = total + pixels.take(taps.indices[:, tap], axis).astype(np.int32) * weights[:, tap].reshape(shape)
    return np.asarray(total)


def _per_axis(pixels: Array, taps: Taps, axis: int, antialias: bool) -> Array:
    """Return the weighted sums along an axis, rounded to uint8 as Pillow does, and PyTorch where it does not antialias."""
    if not antialias:
        taps = taps.merged()
    bits = PILLOW_BITS if antialias else _pytorch_bits(float(taps.weights.max()))
    sums = _integer_sums(pixels, taps, axis, bits) + (1 << (bits - 1))
    return (sums >> bits).clip(0, 255).astype(np.uint8)


def _pytorch_bits(largest: float) -> int:
    """Return the bits of the weights in PyTorch's kernels for uint8: as many as 16-bit numbers hold (`UpSampleKernelAVXAntialias.h`)."""
    bits = 0
    while bits < PILLOW_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << PYTORCH_BITS:
        bits += 1
    return bits


def _in_fixed_point(pixels: Array, down: Taps, across: Taps) -> Array:
    """Return pixels resized with OpenCV's weights of 11 bits (`resize.cpp`: HResizeLinear, VResizeLinear, VResizeCubic)."""
    sums = _integer_sums(pixels, across, 1, OPENCV_BITS)
    weights = np.rint(down.weights * (1 << OPENCV_BITS)).astype(np.int32)
    if down.indices.shape[1] == 2:
        # OpenCV drops low bits so that 16 bits suffice for the products.
        parts = [((sums[down.indices[:, tap]] >> 4) * weights[:, tap, None, None]) >> 16 for tap in range(2)]
        return ((parts[0] + parts[1] + 2) >> 2).clip(0, 255).astype(np.uint8)
    total = np.int64(1 << (2 * OPENCV_BITS - 1))
    for tap in range(down.indices.shape[1]):
        total = total + sums[down.indices[:, tap]].astype(np.int64) * weights[:, tap, None, None]
    return (total >> (2 * OPENCV_BITS)).clip(0, 255).astype(np.uint8)
