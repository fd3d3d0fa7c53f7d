"""Slice, Pad and the other operators that cut or fill at the sides of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@operator("Slice", until=9, keeps_types=True)
def slice_by_attributes(call: Call, x: Array) -> Array:
    starts, ends = call.get("starts"), call.get("ends")
    return _sliced(x, starts, ends, call.get("axes"), None)


@operator("Slice", since=10, keeps_types=True)
def slice_operator(
    _: Call, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:  # fmt: skip
    chosen = None if axes is None else integers(axes)
    return _sliced(x, integers(starts), integers(ends), chosen, None if steps is None else integers(steps))


def _sliced(
    x: Array, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Array:
    cut = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        size = x.shape[axis]
        first, last = (value + size if value < 0 else value for value in (start, end))
        if step > 0:
            cut[axis] = slice(min(max(first, 0), size), min(max(last, 0), size), step)
        elif size:
            stop = min(max(last, -1), size - 1)
            cut[axis] = slice(min(max(first, 0), size - 1), None if stop < 0 else stop, step)
    return x[tuple(cut)]


@operator("Pad", until=10, keeps_types=True)
def pad_by_attributes(call: Call, x: Array) -> Array:
    pads = call.get("pads", call.get("paddings"))
    return _padded(x, pads, range(x.ndim), call.get("mode", "constant"), call.float("value", 0.0))


@operator("Pad", since=11, keeps_types=True)
def pad(call: Call, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None) -> Array:
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in integers(axes)]
    fill = 0 if value is None or not value.size else value.ravel()[0]
    if x.dtype.kind == "O" and (value is None or not value.size):
        fill = ""
    return _padded(x, integers(pads), chosen, call.get("mode", "constant"), fill)


def _padded(x: Array, pads: Sequence[int], axes: Sequence[int], mode: str, fill: Any) -> Array:
    """Negative pads cut; in the other modes the data that is cut is not what is repeated."""
    before, after = [0] * x.ndim, [0] * x.ndim
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    cut = [slice(max(-b, 0), size - max(-a, 0)) for b, a, size in zip(before, after, x.shape, strict=True)]
    x = x[tuple(cut)]
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if mode == "constant":
        sizes = [b + size + a for b, size, a in zip(before, x.shape, after, strict=True)]
        result = np.full(sizes, np.asarray(fill).astype(x.dtype), x.dtype)
        result[tuple(slice(b, b + size) for b, size in zip(before, x.shape, strict=True))] = x
        return result
    return np.pad(x, list(zip(before, after, strict=True)), mode)  # type: ignore[call-overload, no-any-return]


@operator("Trilu", keeps_types=True)
def triangle(call: Call, x: Array, k: Array | None = None) -> Array:
    diagonal = 0 if k is None else integers(k)[0]
    rows, columns = x.shape[-2:]
    below = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    keep = below >= diagonal if call.get("upper", 1) else below <= diagonal
    return np.where(keep, x, np.zeros((), x.dtype))
