"""Intervals through operators that move numbers without changing them: reshapes, slices, joins, borders, resizing.

Where the way of a number cannot be followed, the bounds of all that it could be are joined: wider, never wrong.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from relu_deploy.graph.intervals.interval import UNKNOWN, Interval
from relu_deploy.graph.intervals.operands import Operands, Shape
from relu_deploy.tensors import Array

__all__ = ["concat", "dropout", "expand", "gather", "pad", "reshape", "resize", "same", "slice_", "split", "squeeze", "transpose"]

#: bounds with more numbers than this are joined to one for the whole tensor
MOST = 1 << 24


def same(operands: Operands) -> Interval:
    return operands.interval()


def dropout(operands: Operands) -> list[Interval]:
    """Return the interval of a Dropout, which in inference passes everything on; its mask stays unknown."""
    training = operands.has(2) and (operands.constant(2) is None or bool(np.any(operands.constant(2))))
    return [UNKNOWN if training else operands.interval(), *[UNKNOWN] * (len(operands.node.outputs) - 1)]


def reshape(operands: Operands) -> Interval:
    """Return the interval after Reshape or Flatten, by the shapes that were inferred."""
    x, before, after = operands.interval(), operands.shape(), operands.result_shape()
    if x.low.ndim == 0 or before is None or after is None or len(before) != x.low.ndim:
        return x.merged()
    head, tail = _unchanged(before, after)
    middle, new = before[head : len(before) - tail], after[head : len(after) - tail]
    kept_head, kept_tail = x.low.shape[:head], x.low.shape[len(before) - tail :]
    if all(size == 1 for size in x.low.shape[head : len(before) - tail]):
        shape = (*kept_head, *(1,) * len(new), *kept_tail)
        return x.changed(lambda bound: bound.reshape(shape))
    sizes = [size for size in (*middle, *new) if isinstance(size, int)]
    fits = len(sizes) == len(middle) + len(new) and prod(sizes[: len(middle)]) == prod(sizes[len(middle) :])
    if not fits or prod((*kept_head, *sizes[: len(middle)], *kept_tail)) > MOST:
        return x.merged()
    full, shape = (*kept_head, *sizes[: len(middle)], *kept_tail), (*kept_head, *sizes[len(middle) :], *kept_tail)
    return x.changed(lambda bound: np.broadcast_to(bound, full).reshape(shape))


def _unchanged(before: Shape, after: Shape) -> tuple[int, int]:
    """Return how many leading and how many trailing dimensions a reshape leaves as they are."""

    def is_kept(a: int | str | None, b: int | str | None) -> bool:
        return a is not None and a == b

    head = 0
    while head < min(len(before), len(after)) and is_kept(before[head], after[head]):
        head += 1
    if head == 0 and before and after:
        # The batch is kept although it has lost its name when all the rest has the same size.
        rest = (before[1:], after[1:])
        known = all(isinstance(size, int) for shape in rest for size in shape)
        if known and prod(map(int, before[1:])) == prod(map(int, after[1:])):  # type: ignore[arg-type]
            head = 1
            while head < min(len(before), len(after)) and is_kept(before[head], after[head]):
                head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and is_kept(before[-1 - tail], after[-1 - tail]):
        tail += 1
    return head, tail


def transpose(operands: Operands) -> Interval:
    x = operands.interval()
    if x.low.ndim == 0:
        return x
    order = operands.attribute("perm", None)
    return x.changed(lambda bound: bound.transpose(order))


def squeeze(operands: Operands) -> Interval:
    """Return the interval after Squeeze, Unsqueeze or any operator that only drops or adds dimensions of size 1."""
    x, after, axes = operands.interval(), operands.result_shape(), operands.integers(1, "axes")
    if x.low.ndim == 0:
        return x
    if operands.node.op_type == "Unsqueeze" and axes is not None:
        return x.changed(lambda bound: np.expand_dims(bound, tuple(axes)))
    if operands.node.op_type == "Squeeze" and axes is not None:
        return x.changed(lambda bound: np.squeeze(bound, tuple(axes)))
    return x if after is not None and len(after) == x.low.ndim else x.merged()


def expand(operands: Operands) -> Interval:
    x, after = operands.interval(), operands.result_shape()
    if x.low.ndim == 0 or after is None or len(after) < x.low.ndim:
        return x.merged()
    shape = (*(1,) * (len(after) - x.low.ndim), *x.low.shape)
    return x.changed(lambda bound: bound.reshape(shape))


def concat(operands: Operands) -> Interval:
    """Return the interval of a Concat: channel by channel along axis 1, joined along any other."""
    parts = [operands.interval(position) for position in range(len(operands))]
    shapes = [operands.shape(position) for position in range(len(operands))]
    after = operands.result_shape()
    axis = int(operands.attribute("axis", 1))
    rank = len(after) if after is not None else next((len(shape) for shape in shapes if shape is not None), 0)
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    if rank < 2 or axis not in (1, 1 - rank) or not all(isinstance(size, int) for size in sizes):
        return _joined([part.merged() for part in parts])
    flat = [part.merged([axis for axis in range(part.low.ndim) if axis != 1]) for part in parts]

    def column(bound: Array, size: int) -> Array:
        return np.broadcast_to(bound.reshape(-1), (size,))

    shape = (1, -1, *(1,) * (rank - 2))
    pairs = [(part, int(size)) for part, size in zip(flat, sizes, strict=True) if size is not None]
    return Interval(
        np.concatenate([column(part.low, size) for part, size in pairs]).reshape(shape),
        np.concatenate([column(part.high, size) for part, size in pairs]).reshape(shape),
        max(part.terms for part in parts),
    )


def split(operands: Operands) -> list[Interval]:
    x, axis = operands.interval(), int(operands.attribute("axis", 0))
    if x.low.ndim == 0 or x.low.shape[axis] == 1:
        return [x] * len(operands.node.outputs)
    shapes = [operands.result_shape(position) for position in range(len(operands.node.outputs))]
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    whole = [size for size in sizes if isinstance(size, int)]
    if len(whole) != len(sizes) or sum(whole) != x.low.shape[axis]:
        return [x.merged([axis % x.low.ndim])] * len(sizes)
    cuts = np.cumsum(whole)[:-1]
    lows, highs = np.split(x.low, cuts, axis), np.split(x.high, cuts, axis)
    return [replace(x, low=low, high=high) for low, high in zip(lows, highs, strict=True)]


def slice_(operands: Operands) -> Interval:
    x = operands.interval()
    starts, ends = operands.integers(1, "starts"), operands.integers(2, "ends")
    axes, steps = operands.integers(3, "axes"), operands.integers(4)
    if (
        x.low.ndim == 0
        or starts is None
        or ends is None
        or (operands.has(3) and axes is None)
        or (operands.has(4) and steps is None)
    ):
        return x.merged()
    axes = list(range(len(starts))) if axes is None else axes
    index = [slice(None)] * x.low.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        if x.low.shape[axis] != 1:
            # Backwards to before the first, which ONNX writes as a very negative end, is None in Python.
            first = end < -x.low.shape[axis] and step < 0
            index[axis] = slice(start, None if first else end, step)
    return x.changed(lambda bound: bound[tuple(index)])


def gather(operands: Operands) -> Interval:
    x, indices, axis = operands.interval(), operands.constant(1), int(operands.attribute("axis", 0))
    if x.low.ndim == 0 or indices is None:
        return x.merged()
    at = indices.astype(np.int64) if x.low.shape[axis] != 1 else np.zeros_like(indices, np.int64)
    return x.changed(lambda bound: np.take(bound, at, axis))


def pad(operands: Operands) -> Interval:
    """Return the interval of a padded tensor: the value of the border joins it, on axes that have one."""
    x, pads = operands.interval(), operands.integers(1, "pads")
    if pads is not None and not any(pads):
        return x
    if str(operands.attribute("mode", "constant")) == "constant":
        old = float(operands.attribute("value", 0.0)) if operands.opset < 11 else 0.0
        x = x.joined(operands.interval(2, default=old).merged())
    if pads is None or operands.has(3) or len(pads) != 2 * x.low.ndim:
        return x.merged()
    rank = x.low.ndim
    return x.merged([axis for axis in range(rank) if pads[axis] or pads[axis + rank]])


def resize(operands: Operands) -> Interval:
    """Return the interval of a Resize or Upsample: nearest picks numbers, linear averages them, cubic overshoots."""
    x, before, after = operands.interval(), operands.shape(), operands.result_shape()
    mode = str(operands.attribute("mode", "nearest"))
    outside = str(operands.attribute("coordinate_transformation_mode", "")) == "tf_crop_and_resize"
    if mode not in ("nearest", "linear") or outside or operands.attribute("antialias", 0):
        return UNKNOWN
    if before is None or after is None or len(before) < 2 or before[1] is None or before[1] != after[1]:
        x = x.merged()
    x = x.merged([axis for axis in range(x.low.ndim) if axis != 1])
    if mode == "nearest":
        return x
    # The weights are differences of coordinates, which are rounded in proportion to their size: thousands of units.
    return x.widened(2.0**14 * operands.unit * x.magnitude)


def _joined(parts: list[Interval]) -> Interval:
    result = parts[0]
    for part in parts[1:]:
        result = result.joined(part)
    return result
