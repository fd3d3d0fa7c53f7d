"""TopK, Unique and what else depends on the order of elements."""

from __future__ import annotations

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import is_float
from relu_deploy.tensors import Array

#: share of an axis up to which its largest elements are picked before they are sorted
FEW = 8


@operator("TopK", until=9)
def top_k_by_attribute(call: Call, x: Array) -> tuple[Array, Array]:
    return _top(x, call.get("k"), call.get("axis", -1), largest=True)


@operator("TopK", since=10)
def top_k(call: Call, x: Array, k: Array) -> tuple[Array, Array]:
    return _top(x, integers(k)[0], call.get("axis", -1), largest=bool(call.get("largest", 1)))


def _top(x: Array, k: int, axis: int, *, largest: bool) -> tuple[Array, Array]:
    """Sorted whether the node asks for it or not; of equal elements that with the lower index comes first."""
    keys = np.moveaxis(_descending(x) if largest else x, axis, -1)
    index = np.moveaxis(_smallest(keys, k), -1, axis)
    return np.take_along_axis(x, index, axis), index.astype(np.int64)


def _smallest(keys: Array, k: int) -> Array:
    """Return the places of the `k` smallest keys along the last axis, the smallest first."""
    if 0 < k <= keys.shape[-1] // FEW and keys.size:
        rows = keys.reshape(-1, keys.shape[-1])
        among = rows <= np.partition(rows, k - 1)[:, k - 1 : k]
        # Of several equal elements at the limit only some belong to the result: then everything is sorted.
        if (among.sum(axis=1) == k).all():
            places = np.nonzero(among)[1].reshape(*keys.shape[:-1], k)
            order = np.argsort(np.take_along_axis(keys, places, -1), axis=-1, kind="stable")
            return np.take_along_axis(places, order, -1)
    return np.argsort(keys, axis=-1, kind="stable")[..., :k]


def _descending(x: Array) -> Array:
    """Return keys whose ascending order is the descending one of `x`, without overflow."""
    if is_float(x):
        return np.asarray(-x)
    return np.asarray(np.bitwise_not(x))


@operator("Unique")
def unique(call: Call, x: Array) -> tuple[Array, ...]:
    axis = call.get("axis")
    values, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not call.get("sorted", 1):
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        values = np.take(values, order, 0 if axis is None else axis)
        first, inverse, counts = first[order], place[inverse], counts[order]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


@operator("ReverseSequence", keeps_types=True)
def reverse_sequence(call: Call, x: Array, lengths: Array) -> Array:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    moved = np.moveaxis(x, (batch, time), (0, 1))
    steps = np.arange(moved.shape[1])[None, :]
    counts = lengths.reshape(-1, 1)
    index = np.where(steps < counts, counts - 1 - steps, steps)
    rows = np.arange(moved.shape[0])[:, None]
    return np.moveaxis(moved[rows, index], (0, 1), (batch, time))
