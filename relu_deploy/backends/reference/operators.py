"""Operators for the reference evaluator: those it is slow at, as matrix products, and those it gets wrong.

Slow there: Conv, Gemm and the pools. Wrong there (onnx 1.23, found by disagreeing with every runtime): LRN sums over its
window for the first channels only; BatchNormalization before opset 14 takes the batch's own statistics; Softmax before
opset 13 does not flatten the axes behind its own.

Shapes: x (N, C, *spatial), w (M, C/group, *kernel), one to three spatial dimensions. Padding, strides, dilations and
groups follow the ONNX specification of Conv-22, MaxPool-22, AveragePool-22 and GlobalAveragePool-22; the others that of
LRN-13, BatchNormalization-15 and Softmax-1, -11 and -13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from relu_deploy.tensors import Array

__all__ = ["fast_operators"]

#: elements of the largest patch matrix built at once (1 GiB in float64 would not fit a small machine's patience)
PATCHES = 2**24


def fast_operators() -> Iterator[type[OpRun]]:
    """Yield the operators that replace the reference evaluator's own."""
    yield from (Conv, Gemm, MaxPool, AveragePool, GlobalAveragePool, LRN, BatchNormalization, Softmax)


class Conv(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None
    ):
        spatial = x.ndim - 2
        kernel, group = w.shape[2:], group or 1
        strides, dilations = tuple(strides or (1,) * spatial), tuple(dilations or (1,) * spatial)
        begin, end = _padding(x.shape[2:], kernel, strides, dilations, auto_pad, pads, ceil_mode=False)
        padded = np.pad(x, ((0, 0), (0, 0), *zip(begin, end, strict=True))) if any((*begin, *end)) else x
        y = _convolve(padded, w, strides, dilations, group)
        return (y if b is None else y + b.reshape(1, -1, *(1,) * spatial),)


class Gemm(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):  # type: ignore[no-untyped-def]  # noqa: N803
        y = (a.T if transA else a) @ (b.T if transB else b)
        y = y if alpha in (None, 1.0) else y * y.dtype.type(alpha)
        return (y if c is None else y + (c if beta in (None, 1.0) else c * c.dtype.type(beta)),)


class MaxPool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None, strides=None
    ):
        if len(self.onnx_node.output) > 1:
            raise NotImplementedError("the Indices output of MaxPool")
        windows = _pool_windows(x, kernel_shape, strides, dilations, auto_pad, pads, bool(ceil_mode), -np.inf)
        y = next(windows).copy()
        for window in windows:
            np.maximum(y, window, out=y)
        return (y,)


class AveragePool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None, kernel_shape=None, pads=None, strides=None
    ):
        how = (kernel_shape, strides, dilations, auto_pad, pads, bool(ceil_mode))
        total = sum(_pool_windows(x, *how, 0.0))
        # What hangs over the end in ceil mode never counts; declared padding counts when asked to.
        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        if count_include_pad and pads is not None:
            half = len(pads) // 2
            ones = np.pad(ones, ((0, 0), (0, 0), *zip(pads[:half], pads[half:], strict=True)), constant_values=1)
            how = (kernel_shape, strides, dilations, None, None, bool(ceil_mode))
        return (total / sum(_pool_windows(ones, *how, 0.0)),)


class GlobalAveragePool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LRN(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):  # type: ignore[no-untyped-def]
        before, behind = (size - 1) // 2, size // 2
        sides = ((0, 0), (before, behind), *((0, 0) for _ in x.shape[2:]))
        squares = np.pad(x * x, sides)
        channels = x.shape[1]
        total = sum(squares[:, offset : offset + channels] for offset in range(size))
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


class BatchNormalization(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, scale, bias, mean, variance, epsilon=None, momentum=None, training_mode=None, spatial=None
    ):
        if training_mode:
            raise NotImplementedError("BatchNormalization in training mode")
        spread = (1, -1, *(1,) * (x.ndim - 2))
        factor = (scale / np.sqrt(variance + x.dtype.type(epsilon))).reshape(spread)
        return ((x - mean.reshape(spread)) * factor + bias.reshape(spread),)


class Softmax(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, axis=None):  # type: ignore[no-untyped-def]
        explicit = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        if self.run_params["opsets"][""] >= 13:
            return (_softmax(x, -1 if not explicit else axis),)
        start = axis % x.ndim if explicit else 1
        return (_softmax(x.reshape(prod(x.shape[:start]), -1), 1).reshape(x.shape),)


def _softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def _padding(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str | None,
    pads: Sequence[int] | None,
    ceil_mode: bool,
) -> tuple[list[int], list[int]]:
    spatial = len(size)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((ceil(n / s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    begin, end = (list(pads[:spatial]), list(pads[spatial:])) if pads else ([0] * spatial, [0] * spatial)
    if ceil_mode:
        for axis, (n, s, r) in enumerate(zip(size, strides, reach, strict=True)):
            room = n + begin[axis] + end[axis] - r
            steps = ceil(room / s)
            # A window that would start in the padding after the data is dropped (ONNX since opset 22, and PyTorch).
            steps -= steps * s >= n + begin[axis]
            end[axis] += max(steps * s - room, 0)
    return begin, end


def _convolve(x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int) -> Array:
    batch, channels = x.shape[:2]
    filters, kernel = w.shape[0], w.shape[2:]
    if group == channels == filters:
        windows = _windows(x, kernel, strides, dilations)
        weights = w.reshape(filters, -1)
        spread = (1, filters, *(1,) * len(kernel))
        return np.asarray(sum(window * weights[:, tap].reshape(spread) for tap, window in enumerate(windows)))
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)]
    matrix = w.reshape(group, filters // group, -1)
    y = np.empty((batch, group, filters // group, *sizes), np.result_type(x, w))
    depth = channels // group * prod(kernel)
    rows = max(1, PATCHES // max(1, batch * group * depth * prod(sizes[1:])))
    for first in range(0, sizes[0], rows):
        count = min(rows, sizes[0] - first)
        start = first * strides[0]
        strip = x[:, :, start : start + (count - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1]
        patches = np.stack(list(_windows(strip, kernel, strides, dilations)), axis=2)
        columns = patches.reshape(batch, group, depth, -1)
        y[:, :, :, first : first + count] = (matrix @ columns).reshape(batch, group, filters // group, count, *sizes[1:])
    return y.reshape(batch, filters, *sizes)


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Iterator[Array]:
    """Yield, for each position in the kernel, the view of `x` that it meets at every step."""
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)]
    for offset in product(*map(range, kernel)):
        cut = [slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, n, s in zip(offset, dilations, sizes, strides, strict=True)]
        yield x[(slice(None), slice(None), *cut)]


def _pool_windows(
    x: Any,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str | None,
    pads: Sequence[int] | None,
    ceil_mode: bool,
    fill: float,
) -> Iterator[Array]:
    spatial = len(kernel)
    strides, dilations = tuple(strides or (1,) * spatial), tuple(dilations or (1,) * spatial)
    begin, end = _padding(x.shape[2:], kernel, strides, dilations, auto_pad, pads, ceil_mode)
    filler = fill if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    padded = np.pad(x, ((0, 0), (0, 0), *zip(begin, end, strict=True)), constant_values=filler)
    return _windows(padded, kernel, strides, dilations)
