"""Pools: the largest, mean and p-norm of windows, and of everything but the first two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import is_float
from relu_deploy.backends.reference.windows import Geometry, patches, zero_padded
from relu_deploy.tensors import Array

__all__ = ["average_pool"]


def _with_overhang(x: Array, geometry: Geometry, fill: float) -> Array:
    begin, end = geometry.padding(x.shape[2:])
    beyond = geometry.overhang(x.shape[2:])
    return zero_padded(x, begin, [e + o for e, o in zip(end, beyond, strict=True)], fill)


@operator("MaxPool")
def max_pool(call: Call, x: Array) -> Any:
    geometry = Geometry.of(call, call.get("kernel_shape"))
    lowest = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    padded = _with_overhang(x, geometry, lowest)
    if not call.has_output(1):
        return _largest(padded, geometry.unpadded())
    windows = patches(padded, geometry.unpadded())
    y = next(windows).copy()
    places = patches(_places(x, geometry, bool(call.get("storage_order", 0))), geometry.unpadded())
    found = np.array(np.broadcast_to(next(places), y.shape))
    for window, place in zip(windows, places, strict=True):
        better = (window > y) | ((found < 0) & (place >= 0)) | (np.isnan(window) & ~np.isnan(y) if is_float(x) else False)
        y, found = np.where(better, window, y), np.where(better, place, found)
    return y, found


def _largest(padded: Array, geometry: Geometry) -> Array:
    """Return the largest element of each window, one axis after the other: k + k comparisons an element instead of k · k."""
    ones = (1,) * len(geometry.kernel)
    for axis, (kernel, stride, dilation) in enumerate(zip(geometry.kernel, geometry.strides, geometry.dilations, strict=True)):
        before, behind = ones[:axis], ones[axis + 1 :]
        along = [(*before, size, *behind) for size in (kernel, stride, dilation)]
        windows = patches(padded, Geometry(along[0], along[1], along[2], "VALID", (0,) * 2 * len(ones)))
        padded = next(windows).copy()
        for window in windows:
            np.maximum(padded, window, out=padded)
    return padded


def _places(x: Array, geometry: Geometry, column_major: bool) -> Array:
    """Return the index of each element in the flat tensor, padded with -1."""
    spatial = x.shape[2:]
    inner = np.arange(int(np.prod(spatial)), dtype=np.int64)
    inner = inner.reshape(spatial[::-1]).T if column_major else inner.reshape(spatial)
    outer = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(*x.shape[:2], *(1,) * len(spatial))
    return _with_overhang(outer * inner.size + inner, geometry, -1)


@operator("AveragePool")
def average_pool_operator(call: Call, x: Array) -> Array:
    return average_pool(x, Geometry.of(call, call.get("kernel_shape")), bool(call.get("count_include_pad", 0)))


def average_pool(x: Array, geometry: Geometry, include_padding: bool) -> Array:
    """Return the mean of each window; what hangs over the padding in ceil mode is never counted."""
    total = _sum_of_windows(_with_overhang(x, geometry, 0), geometry)
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if include_padding:
        begin, end = geometry.padding(x.shape[2:])
        counted = zero_padded(ones, begin, end, 1)
        ones = zero_padded(counted, [0] * len(begin), geometry.overhang(x.shape[2:]))
    else:
        ones = _with_overhang(ones, geometry, 0)
    return total / _sum_of_windows(ones, geometry)


def _sum_of_windows(padded: Array, geometry: Geometry) -> Array:
    windows = patches(padded, geometry.unpadded())
    total = next(windows).copy()
    for window in windows:
        total += window
    return total


@operator("LpPool")
def lp_pool(call: Call, x: Array) -> Array:
    geometry, p = Geometry.of(call, call.get("kernel_shape")), call.get("p", 2)
    return np.asarray(_sum_of_windows(_with_overhang(np.abs(x) ** p, geometry, 0), geometry) ** (1 / p)).astype(x.dtype)


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(_: Call, x: Array) -> Array:
    return np.asarray(x.mean(axis=_spatial(x), keepdims=True))


@operator("GlobalMaxPool")
def global_max_pool(_: Call, x: Array) -> Array:
    return np.asarray(x.max(axis=_spatial(x), keepdims=True))


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Array) -> Array:
    p = call.get("p", 2)
    return np.asarray((np.abs(x) ** p).sum(axis=_spatial(x), keepdims=True) ** (1 / p)).astype(x.dtype)


@operator("MaxUnpool")
def max_unpool(call: Call, x: Array, indices: Array, output_shape: Array | None = None) -> Array:
    """Indices count within the size that undoes the pool; a larger `output_shape` is filled with zeros behind it."""
    geometry = Geometry.of(call, call.get("kernel_shape"))
    spatial = len(geometry.kernel)
    sizes = [
        (n - 1) * s + k - geometry.pads[axis] - geometry.pads[axis + spatial]
        for axis, (n, s, k) in enumerate(zip(x.shape[2:], geometry.strides, geometry.kernel, strict=True))
    ]
    result = np.zeros((*x.shape[:2], *sizes), x.dtype)
    result.reshape(-1)[indices.ravel()] = x.ravel()
    return result if output_shape is None else _behind(result, [int(n) for n in output_shape])


def _behind(x: Array, shape: Sequence[int]) -> Array:
    whole = np.zeros(shape, x.dtype)
    cut = tuple(slice(0, min(a, b)) for a, b in zip(x.shape, shape, strict=True))
    whole[cut] = x[cut]
    return whole
