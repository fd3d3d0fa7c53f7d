"""Conv, ConvTranspose and Col2Im as matrix products.

Shapes: x (N, C, *spatial), w (M, C / group, *kernel), any number of spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.windows import Geometry, patches, zero_padded
from relu_deploy.tensors import Array

__all__ = ["convolve", "transposed_convolution"]

#: elements of the largest patch matrix that is built at once: 8 MiB in float64, which stay in the processor's cache
PATCHES = 2**20
#: elements of the output of a depthwise convolution that are summed up at once: with a term they stay in the cache
BLOCK = 2**15


@operator("Conv")
def conv(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    geometry = Geometry.of(call, w.shape[2:])
    return _with_bias(convolve(x, w, geometry, call.get("group", 1)), b)


def convolve(x: Array, w: Array, geometry: Geometry, group: int) -> Array:
    """Return the convolution of `x` with `w`, without bias; integers are summed exactly in their own type."""
    begin, end = geometry.padding(x.shape[2:])
    x = zero_padded(x, begin, end)
    strides, dilations = geometry.strides, geometry.dilations
    batch, channels = x.shape[:2]
    filters, kernel = w.shape[0], w.shape[2:]
    if group == channels == filters:
        return _depthwise(x, w.reshape(filters, -1), geometry)
    sizes = geometry.steps(x.shape[2:])
    matrix = w.reshape(group, filters // group, -1)
    y = np.empty((batch, group, filters // group, *sizes), np.result_type(x, w))
    depth = channels // group * prod(kernel)
    if prod(kernel) == 1 and set(strides) == {1}:
        return np.asarray(matrix @ x.reshape(batch, group, depth, -1)).reshape(batch, filters, *sizes)
    rows = max(1, PATCHES // max(1, batch * group * depth * prod(sizes[1:])))
    for first in range(0, sizes[0], rows):
        count = min(rows, sizes[0] - first)
        start = first * strides[0]
        strip = x[:, :, start : start + (count - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1]
        columns = np.stack(list(patches(strip, geometry)), axis=2).reshape(batch, group, depth, -1)
        y[:, :, :, first : first + count] = (matrix @ columns).reshape(batch, group, filters // group, count, *sizes[1:])
    return y.reshape(batch, filters, *sizes)


def _depthwise(x: Array, weights: Array, geometry: Geometry) -> Array:
    """Return the convolution of each channel of the padded `x` with its own filter. weights: (C, taps)."""
    batch, channels = x.shape[:2]
    sizes = geometry.steps(x.shape[2:])
    total = np.zeros((batch, channels, *sizes), np.result_type(x, weights))
    count = max(1, BLOCK // max(1, batch * prod(sizes)))
    for first in range(0, channels, count):
        part, sums = x[:, first : first + count], total[:, first : first + count]
        factors = weights[first : first + count]
        term = np.empty_like(sums)
        for tap, window in enumerate(patches(part, geometry)):
            np.multiply(window, factors[:, tap].reshape(-1, *(1,) * len(sizes)), out=term)
            sums += term
    return total


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    return _with_bias(transposed_convolution(call, x, w), b)


def _with_bias(y: Array, b: Array | None) -> Array:
    """Return `y`, a new array, with `b` added to its channels."""
    if b is not None:
        y += b.reshape(1, -1, *(1,) * (y.ndim - 2))
    return y


def transposed_convolution(call: Call, x: Array, w: Array) -> Array:
    """Return the transposed convolution without bias: one matrix product, whose columns are added where they belong.

    w: (C, M / group, *kernel).
    """
    geometry, group = Geometry.of(call, w.shape[2:]), call.get("group", 1)
    batch, channels = x.shape[:2]
    size, kernel, filters = x.shape[2:], w.shape[2:], w.shape[1]
    begin, sizes = _placement(call, geometry, size)
    matrix = w.reshape(group, channels // group, filters * prod(kernel)).transpose(0, 2, 1)
    full = [(n - 1) * s + r for n, s, r in zip(size, geometry.strides, geometry.reach, strict=True)]
    y = np.zeros((batch, group * filters, *full), np.result_type(x, w))
    rows = max(1, PATCHES // max(1, batch * group * filters * prod(kernel) * prod(size[1:])))
    for first in range(0, size[0], rows):
        strip = x[:, :, first : first + rows]
        columns = matrix @ strip.reshape(batch, group, channels // group, -1)
        _add_up(
            columns.reshape(batch, group * filters, *kernel, *strip.shape[2:]), y[:, :, first * geometry.strides[0] :], geometry
        )
    # Negative pads at the beginning and output sizes beyond what the input reaches are zeros.
    result = np.zeros((batch, group * filters, *sizes), y.dtype)
    inside, cut = [slice(None)] * 2, [slice(None)] * 2
    for first, length, there in zip(begin, sizes, full, strict=True):
        start, stop = max(first, 0), min(first + length, there)
        cut.append(slice(start, max(stop, start)))
        inside.append(slice(start - first, max(stop, start) - first))
    result[tuple(inside)] = y[tuple(cut)]
    return result


def _placement(call: Call, geometry: Geometry, size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return where the output begins in the full result, and its sizes.

    With `output_shape`, or SAME padding (where the output is stride times the input), the padding follows from the sizes; the
    odd element is cut at the end for SAME_UPPER and at the beginning otherwise (ConvTranspose-11's formula).
    """
    spatial = len(size)
    extra = call.get("output_padding") or [0] * spatial
    auto, pads = call.get("auto_pad", "NOTSET"), call.get("pads") or [0] * 2 * spatial
    reach = [
        (n - 1) * s + e + (k - 1) * d + 1
        for n, s, e, k, d in zip(size, geometry.strides, extra, geometry.kernel, geometry.dilations, strict=True)
    ]
    shape = call.get("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [n * s for n, s in zip(size, geometry.strides, strict=True)]
    if shape is None:
        if auto == "VALID":
            pads = [0] * 2 * spatial
        return list(pads[:spatial]), [r - pads[i] - pads[spatial + i] for i, r in enumerate(reach)]
    shape = list(shape[-spatial:])
    total = [max(r - n, 0) for r, n in zip(reach, shape, strict=True)]
    begin = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
    return begin, shape


def _add_up(columns: Array, y: Array, geometry: Geometry) -> None:
    """Add each column (N, M, *kernel, *steps) to the places of `y` (N, M, *size) that its kernel covers."""
    spatial = len(geometry.kernel)
    kernel, steps = columns.shape[2 : 2 + spatial], columns.shape[2 + spatial :]
    for offset in product(*map(range, kernel)):
        places = [
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, geometry.dilations, steps, geometry.strides, strict=True)
        ]
        taken: tuple[Any, ...] = (slice(None), slice(None), *offset)
        y[(slice(None), slice(None), *places)] += columns[taken]


@operator("Col2Im")
def column_to_image(call: Call, x: Array, image: Array, block: Array) -> Array:
    kernel, size = [int(n) for n in block], [int(n) for n in image]
    geometry = Geometry.of(call, kernel)
    begin, end = geometry.padding(size)
    full = [n + b + e for n, b, e in zip(size, begin, end, strict=True)]
    steps = geometry.steps(full)
    channels = x.shape[1] // prod(kernel)
    y = np.zeros((x.shape[0], channels, *full), x.dtype)
    _add_up(x.reshape(x.shape[0], channels, *kernel, *steps), y, geometry)
    return y[(slice(None), slice(None), *(slice(b, b + n) for b, n in zip(begin, size, strict=True)))]
