"""Resize and Upsample: each axis is resized on its own, by a few weighted elements of the input per output element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    size, length: elements of the input and of the output. scale: length / size as the node gives it; exact where it is given by
    the sizes. roi: start and end of the region for tf_crop_and_resize.
    """

    index: int
    size: int
    length: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)
    exact: bool = False

    def unscaled(self, steps: Array) -> Array:
        """Return `steps` of the output in elements of the input."""
        if self.exact and steps.dtype == np.float64:
            return steps * self.size / self.length
        return steps / steps.dtype.type(self.scale)


@operator("Upsample", until=8)
def upsample_by_attributes(call: Call, x: Array) -> Array:
    scales = call.get("scales") or [1.0, 1.0, call.get("height_scale"), call.get("width_scale")]
    return _resized_as_version_10(call, x, scales)


@operator("Upsample", since=9)
def upsample(call: Call, x: Array, scales: Array) -> Array:
    return _resized_as_version_10(call, x, scales.ravel().tolist())


@operator("Resize", until=10)
def resize_of_version_10(call: Call, x: Array, scales: Array) -> Array:
    return _resized_as_version_10(call, x, scales.ravel().tolist())


def _resized_as_version_10(call: Call, x: Array, scales: Sequence[float]) -> Array:
    """Asymmetric coordinates; nearest rounds down, or up where the axis shrinks."""
    mode = call.get("mode", "nearest")
    for axis in _scaled_axes(x, range(x.ndim), scales, None):
        if axis.scale == 1:
            continue
        if mode == "nearest":
            places = np.arange(axis.length, dtype=np.float32) / np.float32(axis.scale)
            index = np.ceil(places) if axis.scale < 1 else np.floor(places)
            x = np.take(x, np.clip(index, 0, axis.size - 1).astype(np.int64), axis.index)
        else:
            x = _interpolated(x, axis, *_linear(np.arange(axis.length) / axis.scale, axis))
    return x


@operator("Resize", since=11)
def resize(
    call: Call, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Array:  # fmt: skip
    chosen = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    region = None if roi is None or not roi.size else roi.ravel().tolist()
    if sizes is not None and sizes.size:
        axes = _sized_axes(x, chosen, integers(sizes), region, call.get("keep_aspect_ratio_policy", "stretch"))
    else:
        assert scales is not None
        axes = _scaled_axes(x, chosen, scales.ravel().tolist(), region)
    mode, transformation = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    # The last axis first: it is the slowest one, and the others are not yet enlarged.
    axes = axes[::-1]
    outside = None
    whole = x.dtype
    if mode != "nearest" and whole.kind in "iu":
        x = x.astype(np.float64)
    for axis in axes:
        if axis.scale == 1 and axis.length == axis.size and transformation != "tf_crop_and_resize":
            continue
        if transformation == "tf_crop_and_resize":
            places = _coordinates(axis, transformation, np.float64)
            beyond = (places < 0) | (places > axis.size - 1)
            spread = beyond.reshape(-1, *(1,) * (x.ndim - 1 - axis.index))
            outside = spread if outside is None else outside | spread
        x = _along_axis(call, x, axis, mode, transformation)
    if outside is not None:
        x = np.where(outside, x.dtype.type(call.float("extrapolation_value", 0.0)), x)
    return x if x.dtype == whole else np.clip(np.rint(x), np.iinfo(whole).min, np.iinfo(whole).max).astype(whole)


def _scaled_axes(x: Array, axes: Sequence[int], scales: Sequence[float], roi: Sequence[float] | None) -> list[Axis]:
    # The product is rounded to float32, in which runtimes compute it: 10 times 0.7 are 7.
    return [
        Axis(
            axis,
            x.shape[axis],
            int(np.floor(np.float32(scale) * np.float32(x.shape[axis]))),
            scale,
            _region(roi, index, len(axes)),
        )
        for index, (axis, scale) in enumerate(zip(axes, scales, strict=True))
    ]


def _sized_axes(
    x: Array, axes: Sequence[int], sizes: Sequence[int], roi: Sequence[float] | None, policy: str
) -> list[Axis]:  # fmt: skip
    ratios = [size / x.shape[axis] if x.shape[axis] else 1.0 for axis, size in zip(axes, sizes, strict=True)]
    lengths = list(sizes)
    if policy != "stretch":
        kept = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [kept] * len(ratios)
        lengths = [int(np.floor(kept * x.shape[axis] + 0.5)) for axis in axes]
    return [
        Axis(axis, x.shape[axis], length, ratio, _region(roi, index, len(axes)), policy == "stretch")
        for index, (axis, length, ratio) in enumerate(zip(axes, lengths, ratios, strict=True))
    ]


def _region(roi: Sequence[float] | None, index: int, count: int) -> tuple[float, float]:
    return (0.0, 1.0) if roi is None else (roi[index], roi[index + count])


def _coordinates(axis: Axis, transformation: str, dtype: Any) -> Array:
    """Return where each output element lies in the input, computed in `dtype`."""
    steps, scale, half = np.arange(axis.length, dtype=dtype), dtype(axis.scale), dtype(0.5)
    if transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and axis.length > 1):
        return axis.unscaled(steps + half) - half
    if transformation == "pytorch_half_pixel":
        return np.zeros(axis.length, dtype)
    if transformation == "half_pixel_symmetric":
        adjustment = dtype(axis.length) / (scale * dtype(axis.size))
        offset = dtype(axis.size) / 2 * (1 - adjustment)
        return offset + axis.unscaled(steps + half) - half
    if transformation == "align_corners":
        last = scale * dtype(axis.size) - 1
        return np.zeros(axis.length, dtype) if axis.length == 1 else steps * dtype(axis.size - 1) / last
    if transformation == "asymmetric":
        return axis.unscaled(steps)
    if transformation == "tf_half_pixel_for_nn":
        return axis.unscaled(steps + half)
    if transformation == "tf_crop_and_resize":
        start, end = (dtype(value) for value in axis.roi)
        if axis.length == 1:
            return np.full(1, half * (start + end) * (axis.size - 1), dtype)
        return start * (axis.size - 1) + steps * (end - start) * (axis.size - 1) / (axis.length - 1)
    raise ValueError(f"unknown coordinate_transformation_mode {transformation!r}")


def _along_axis(call: Call, x: Array, axis: Axis, mode: str, transformation: str) -> Array:
    if mode == "nearest":
        # Rounded down or up in float32, as runtimes do: in float64 the quotients that are whole numbers there are not. Halves
        # that follow from sizes are exact.
        rounding = call.get("nearest_mode", "round_prefer_floor")
        exact = axis.exact and rounding.startswith("round")
        index = _nearest(_coordinates(axis, transformation, np.float64 if exact else np.float32), rounding)
        return np.take(x, np.clip(index, 0, axis.size - 1).astype(np.int64), axis.index)
    places = _coordinates(axis, transformation, np.float64)
    antialias = bool(call.get("antialias", 0)) and axis.scale < 1
    if mode == "linear":
        index, weights = _antialiased(places, axis, 1, 0.0) if antialias else _linear(places, axis)
    else:
        a = call.float("cubic_coeff_a", -0.75)
        index, weights = _antialiased(places, axis, 2, a) if antialias else _cubic(places, a)
    if call.get("exclude_outside", 0):
        weights = np.where((index < 0) | (index >= axis.size), 0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return _interpolated(x, axis, np.clip(index, 0, axis.size - 1), weights)


def _nearest(places: Array, mode: str) -> Array:
    places = places.astype(np.float64)  # so that adding a half does not round what lies just below it
    if mode == "round_prefer_floor":
        return np.asarray(np.ceil(places - 0.5))
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(places + 0.5))
    return np.asarray(np.floor(places) if mode == "floor" else np.ceil(places))


def _linear(places: Array, axis: Axis) -> tuple[Array, Array]:
    """Return the two neighbors of each place and their weights; beyond the ends the last element counts."""
    places = np.clip(places, 0, axis.size - 1)
    low = np.floor(places)
    ratio = places - low
    index = np.stack([low, np.minimum(low + 1, axis.size - 1)], 1).astype(np.int64)
    return index, np.stack([1 - ratio, ratio], 1)


def cubic_weights(distance: Array, a: float) -> Array:
    """Return the weights of the cubic convolution kernel (Keys 1981) at a distance from the element, in elements."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _cubic(places: Array, a: float) -> tuple[Array, Array]:
    low = np.floor(places)
    index = low[:, None] + np.arange(-1, 3)
    return index.astype(np.int64), cubic_weights(places[:, None] - index, a)


def _antialiased(places: Array, axis: Axis, radius: int, a: float) -> tuple[Array, Array]:
    """Return the elements under a kernel that is stretched by 1 / scale, and their weights, which sum to 1."""
    scale = min(axis.scale, 1.0)
    reach = radius / scale
    count = 2 * int(np.ceil(reach)) + 1
    index = (np.floor(places)[:, None] + np.arange(count) - count // 2).astype(np.int64)
    distance = (index - places[:, None]) * scale
    weights = np.clip(1 - np.abs(distance), 0, 1) if radius == 1 else cubic_weights(distance, a)
    return index, weights / weights.sum(1, keepdims=True)


def _interpolated(x: Array, axis: Axis, index: Array, weights: Array) -> Array:
    spread = (-1, *(1,) * (x.ndim - 1 - axis.index))
    total: Array | None = None
    for tap in range(index.shape[1]):
        if not weights[:, tap].any():
            continue
        term = np.take(x, index[:, tap], axis.index)
        term *= weights[:, tap].astype(x.dtype).reshape(spread)
        if total is None:
            total = term
        else:
            total += term
    assert total is not None
    return total
