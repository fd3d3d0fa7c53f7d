"""Operators that read a picture between its pixels: AffineGrid, GridSample, RoiAlign, MaxRoiPool, DeformConv."""

from __future__ import annotations

from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.imaging.resize import cubic_weights
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.special import in_parallel
from relu_deploy.backends.reference.windows import Geometry
from relu_deploy.tensors import Array

#: elements that are gathered at once, so that they stay in the cache
BLOCK = 2**15


@operator("AffineGrid")
def affine_grid(call: Call, theta: Array, size: Array) -> Array:
    """theta (N, axes, axes + 1), size N, C and the spatial sizes. Returns (N, *spatial, axes): places from -1 to 1, the last axis first.

    A height or width of 1 with align_corners gives NaN, and a depth of 1 gives -1, as the operator's definition does.
    """
    sizes, corners = [int(n) for n in size[2:]], bool(call.get("align_corners", 0))
    grid = theta[(slice(None), *(None,) * len(sizes), slice(None), -1)]
    for axis, count in enumerate(sizes):
        steps = np.arange(count).astype(theta.dtype)
        if corners:
            is_flat_depth = count == 1 and len(sizes) == 3 and axis == 0
            places = steps * (0 if is_flat_depth else np.divide(2, theta.dtype.type(count - 1))) - 1
        else:
            places = (2 * steps + 1) / theta.dtype.type(count) - 1
        along = places.reshape(-1, *(1,) * (len(sizes) - axis))
        grid = grid + along * theta[(slice(None), *(None,) * len(sizes), slice(None), len(sizes) - 1 - axis)]
    return np.asarray(grid)


@operator("GridSample")
def grid_sample(call: Call, x: Array, grid: Array) -> Array:
    """x (N, C, *spatial), grid (N, *out, axes) of places from -1 to 1, the last axis of x first. Returns (N, C, *out)."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(call.get("mode", "linear"), call.get("mode", "linear"))
    padding, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    sizes = x.shape[2:]
    places = []
    for axis, size in enumerate(sizes):
        place = grid[..., len(sizes) - 1 - axis]
        place = (place + 1) / 2 * (size - 1) if corners else ((place + 1) * size - 1) / 2
        if mode != "cubic":
            place = _padded_place(place, size, padding, corners)
        places.append(place.reshape(grid.shape[0], -1))
    rows = []
    for batch in range(x.shape[0]):
        pixels = np.ascontiguousarray(x[batch].reshape(x.shape[1], -1).T)
        rows.append(_sampled(pixels, sizes, [place[batch] for place in places], mode, (padding, corners)))
    return np.stack(rows).transpose(0, 2, 1).reshape(*x.shape[:2], *grid.shape[1:-1])


def _padded_place(place: Array, size: int, padding: str, corners: bool) -> Array:
    """Return the place that is read instead of one outside of the data."""
    if padding == "reflection":
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        span = high - low
        if span == 0:
            return np.zeros_like(place)
        turns = np.abs(place - low) % (2 * span)
        place = np.where(turns > span, 2 * span - turns, turns).astype(place.dtype) + place.dtype.type(low)
    return np.asarray(place if padding == "zeros" else np.clip(place, 0, size - 1))


def _sampled(pixels: Array, sizes: tuple[int, ...], places: list[Array], mode: str, outside: tuple[str, bool]) -> Array:
    """Return (points, C) of `pixels` (all places in order, C) at `places`, one array of points per axis."""
    taps: list[list[tuple[Array, Array | None]]] = []
    for size, place in zip(sizes, places, strict=True):
        if mode == "nearest":
            taps.append([(np.rint(place), None)])
        elif mode == "linear":
            low = np.floor(place)
            taps.append([(low, 1 - (place - low)), (low + 1, place - low)])
        else:
            low = np.floor(place)
            whole = [low + step for step in range(-1, 3)]
            taps.append([(_padded_place(at, size, *outside), cubic_weights(place - at, -0.75)) for at in whole])
    neighbors = []
    for corner in product(*taps):
        index, weight = np.zeros(places[0].size, np.int64), np.ones(places[0].size, pixels.dtype)
        for size, (at, share) in zip(sizes, corner, strict=True):
            inside = (at >= 0) & (at <= size - 1)
            index = index * size + np.where(inside, at, 0).astype(np.int64)
            weight = weight * inside if share is None else weight * (share * inside).astype(pixels.dtype)
        neighbors.append((index, weight[:, None]))
    total = np.zeros((places[0].size, pixels.shape[1]), pixels.dtype)

    def run(part: slice) -> None:
        for index, weight in neighbors:
            read = pixels.take(index[part], 0)
            read *= weight[part]
            total[part] += read

    in_parallel(run, len(total), max(1, BLOCK // max(1, pixels.shape[1])))
    return total


@operator("RoiAlign")
def roi_align(call: Call, x: Array, rois: Array, batch: Array) -> Array:
    """Mean or maximum of samples in the bins of each region; a bin is read as its rows first, then its columns."""
    # Before version 16 regions have at least one pixel and start at pixels' corners.
    half = call.version >= 16 and call.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    ratio, scale = call.get("sampling_ratio", 0), x.dtype.type(call.float("spatial_scale", 1.0))
    result = np.zeros((len(rois), x.shape[1], height, width), x.dtype)
    for number, (roi, picture) in enumerate(zip(rois, batch, strict=True)):
        x1, y1, x2, y2 = roi * scale - x.dtype.type(0.5 if half else 0)
        roi_w, roi_h = x2 - x1, y2 - y1
        if not half:
            roi_w, roi_h = max(roi_w, x.dtype.type(1)), max(roi_h, x.dtype.type(1))
        rows = _bin_taps(y1, roi_h, height, ratio, x.shape[2])
        columns = _bin_taps(x1, roi_w, width, ratio, x.shape[3])
        largest = call.get("mode", "avg") == "max"
        result[number] = _pooled(x[int(picture)], rows, columns, (height, width), largest=largest)
    return result


Taps = tuple[Array, Array, Array, Array]


def _pooled(x: Array, rows: Taps, columns: Taps, bins: tuple[int, int], *, largest: bool) -> Array:
    """Return the mean of the samples in each bin, or the largest weighted neighbor of any, which is what the mode max means."""
    if not rows[0].size or not columns[0].size:
        return np.zeros((x.shape[0], *bins), x.dtype)

    def in_bins(samples: Array) -> Array:
        return samples.reshape(x.shape[0], bins[0], rows[0].size // bins[0], bins[1], columns[0].size // bins[1])

    if not largest:
        # Only the columns that are read, of the rows that are read.
        first, last = int(columns[0].min()), int(columns[1].max()) + 1
        strip = x[:, :, first:last]
        low, high, low_weight, high_weight = rows
        read = strip[:, low] * low_weight.astype(x.dtype)[:, None] + strip[:, high] * high_weight.astype(x.dtype)[:, None]
        read = read.reshape(x.shape[0], bins[0], -1, last - first).mean(2)
        low, high, low_weight, high_weight = columns
        read = read[..., low - first] * low_weight.astype(x.dtype) + read[..., high - first] * high_weight.astype(x.dtype)
        return np.asarray(read.reshape(x.shape[0], *bins, -1).mean(3))
    corners = []
    for place, weight in ((rows[0], rows[2]), (rows[1], rows[3])):
        for other, share in ((columns[0], columns[2]), (columns[1], columns[3])):
            part = x[:, place][:, :, other] * (weight[:, None] * share[None]).astype(x.dtype)
            corners.append(in_bins(part).max((2, 4)))
    return np.asarray(np.max(corners, 0))


def _bin_taps(start: Any, length: Any, bins: int, ratio: int, size: int) -> tuple[Array, Array, Array, Array]:
    """Return both neighbors of each sample of one axis and their weights, 0 where the sample lies outside of the picture."""
    count = ratio if ratio > 0 else ceil(float(length) / bins)
    step = length / bins
    places = start + np.arange(bins)[:, None] * step + (np.arange(count)[None] + type(length)(0.5)) * step / max(count, 1)
    places = places.ravel()
    inside = (places >= -1) & (places <= size)
    places = np.clip(places, 0, size - 1)
    low = np.minimum(np.floor(places), size - 1)
    share = places - low
    high = np.minimum(low + 1, size - 1)
    return low.astype(np.int64), high.astype(np.int64), (1 - share) * inside, share * inside


@operator("MaxRoiPool")
def max_roi_pool(call: Call, x: Array, rois: Array) -> Array:
    height, width = call.get("pooled_shape")
    scale = call.float("spatial_scale", 1.0)
    result = np.zeros((len(rois), x.shape[1], height, width), x.dtype)
    for number, roi in enumerate(rois):
        picture = x[int(roi[0])]
        x1, y1, x2, y2 = (floor(float(value) * scale + 0.5) for value in roi[1:])
        edges = [_pool_edges(y1, y2, height, x.shape[2]), _pool_edges(x1, x2, width, x.shape[3])]
        for row, (top, bottom) in enumerate(edges[0]):
            for column, (left, right) in enumerate(edges[1]):
                if bottom > top and right > left:
                    result[number, :, row, column] = picture[:, top:bottom, left:right].max((1, 2))
    return result


def _pool_edges(first: int, last: int, bins: int, size: int) -> list[tuple[int, int]]:
    step = max(last - first + 1, 1) / bins
    edges = [(floor(index * step) + first, ceil((index + 1) * step) + first) for index in range(bins)]
    return [(min(max(a, 0), size), min(max(b, 0), size)) for a, b in edges]


@operator("DeformConv")
def deformable_conv(
    call: Call, x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None
) -> Array:  # fmt: skip
    """Conv that reads each element of its kernel at a place of its own; two spatial axes."""
    geometry = Geometry.of(call, w.shape[2:])
    group, offset_groups = call.get("group", 1), call.get("offset_group", 1)
    batch, channels = x.shape[:2]
    taps, out = w.shape[2] * w.shape[3], offset.shape[2:]
    offsets = offset.reshape(batch, offset_groups, taps, 2, *out)
    masks = (
        np.ones((batch, offset_groups, taps, *out), x.dtype) if mask is None else mask.reshape(batch, offset_groups, taps, *out)
    )
    begin, _ = geometry.padding(x.shape[2:])
    each = channels // offset_groups
    columns = np.empty((batch, channels, taps, *out), x.dtype)
    for row, part, (tap, at) in product(range(batch), range(offset_groups), enumerate(product(*map(range, geometry.kernel)))):
        places = []
        for axis in (0, 1):
            start = at[axis] * geometry.dilations[axis] - begin[axis]
            steps = (np.arange(out[axis]) * geometry.strides[axis] + start).reshape((-1, 1) if axis == 0 else (1, -1))
            places.append((steps + offsets[row, part, tap, axis]).ravel().astype(x.dtype))
        pixels = np.ascontiguousarray(x[row, part * each : (part + 1) * each].reshape(each, -1).T)
        values = _sampled(pixels, x.shape[2:], places, "linear", ("zeros", False)).T.reshape(each, *out)
        columns[row, part * each : (part + 1) * each, tap] = values * masks[row, part, tap]
    matrix = w.reshape(group, w.shape[0] // group, -1)
    y = (matrix @ columns.reshape(batch, group, channels // group * taps, -1)).reshape(batch, w.shape[0], *out)
    return y if b is None else y + b.reshape(1, -1, 1, 1)
