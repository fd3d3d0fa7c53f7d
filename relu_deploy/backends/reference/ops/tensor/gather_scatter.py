"""Reading and writing elements at indices."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array

REDUCTIONS: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@operator("Gather", keeps_types=True)
def gather(call: Call, x: Array, indices: Array) -> Array:
    return np.asarray(np.take(x, indices.astype(np.int64), call.get("axis", 0)))


@operator("GatherElements", keeps_types=True)
def gather_elements(call: Call, x: Array, indices: Array) -> Array:
    axis = call.get("axis", 0) % x.ndim
    return x[_grid(indices, axis, x.shape[axis])]


@operator("GatherND", keeps_types=True)
def gather_nd(call: Call, x: Array, indices: Array) -> Array:
    batch = call.get("batch_dims", 0)
    rows = prod(x.shape[:batch])
    flat, depth = indices.reshape(rows, -1, indices.shape[-1]), indices.shape[-1]
    data = x.reshape(rows, *x.shape[batch:])
    index = (np.arange(rows)[:, None], *(flat[..., place] for place in range(depth)))
    return data[index].reshape(*indices.shape[:-1], *x.shape[batch + depth :])


@operator("Scatter", "ScatterElements", keeps_types=True)
def scatter_elements(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    axis = call.get("axis", 0) % x.ndim
    return _scattered(call, x, _grid(indices, axis, x.shape[axis]), updates)


@operator("ScatterND", keeps_types=True)
def scatter_nd(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    return _scattered(call, x, tuple(indices[..., place] for place in range(indices.shape[-1])), updates)


def _scattered(call: Call, x: Array, index: tuple[Array, ...], updates: Array) -> Array:
    result = x.copy()
    reduction = call.get("reduction", "none")
    if reduction == "none":
        result[index] = updates
    else:
        REDUCTIONS[reduction].at(result, index, updates)
    return result


def _grid(indices: Array, axis: int, size: int) -> tuple[Array, ...]:
    """Return one index array per axis: each element's own place, but along `axis` what `indices` says."""
    places: list[Array] = list(np.ogrid[tuple(slice(length) for length in indices.shape)])
    places[axis] = np.where(indices < 0, indices + size, indices)
    return tuple(places)


@operator("TensorScatter", keeps_types=True)
def tensor_scatter(call: Call, cache: Array, update: Array, starts: Array | None = None) -> Array:
    """Write `update` into each row of the cache from its start on, round its end where the mode is circular."""
    axis = call.get("axis", -2) % cache.ndim
    result = cache.copy()
    first = np.zeros(cache.shape[0], np.int64) if starts is None else starts
    for row in range(cache.shape[0]):
        places = first[row] + np.arange(update.shape[axis])
        if call.get("mode", "linear") == "circular":
            places = places % cache.shape[axis]
        where = [slice(None)] * (cache.ndim - 1)
        np.moveaxis(result[row], axis - 1, 0)[places] = np.moveaxis(update[row][tuple(where)], axis - 1, 0)
    return result
