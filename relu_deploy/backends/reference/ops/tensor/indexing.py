"""Tensors made from indices and conditions: OneHot, NonZero, Compress, ArrayFeature selection."""

from __future__ import annotations

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@operator("OneHot", keeps_types=True)
def one_hot(call: Call, indices: Array, depth: Array, values: Array) -> Array:
    """Indices outside of ±depth give a row without a hit."""
    count = int(depth.reshape(-1)[0])
    off, on = values
    axis = call.get("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    whole = np.expand_dims(np.asarray(indices).astype(np.int64), axis)
    whole = np.where(whole < 0, whole + count, whole)
    places = np.arange(count).reshape(-1, *(1,) * (indices.ndim - axis))
    return np.where(whole == places, on, off).astype(values.dtype)


@operator("NonZero", keeps_types=True)
def non_zero(_: Call, x: Array) -> Array:
    return np.array(np.nonzero(np.atleast_1d(x)), np.int64) if x.ndim else np.zeros((0, int(x != 0)), np.int64)


@operator("Compress", keeps_types=True)
def compress(call: Call, x: Array, condition: Array) -> Array:
    axis = call.get("axis")
    flat = x.ravel() if axis is None else x
    along = 0 if axis is None else axis
    chosen = np.flatnonzero(condition[: flat.shape[along]])
    return np.take(flat, chosen, along)
