"""Shapes: reading them, changing them, joining and splitting tensors, and constants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


def integers(values: Any) -> list[int]:
    """Return an operand or attribute of integers as a list."""
    return [int(value) for value in np.asarray(values).ravel()]


@operator("Identity")
def identity(_: Call, x: Any) -> Any:
    return x


@operator("Constant", keeps_types=True)
def constant(call: Call) -> Any:
    kinds: dict[str, Any] = {
        "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
        "value_string": object, "value_strings": object,
    }  # fmt: skip
    for name, dtype in kinds.items():
        if name in call.attributes:
            wide = call.wide and dtype is np.float32
            return np.array(call.attributes[name], np.float64 if wide else dtype)
    return call.attributes["value"]


@operator("ConstantOfShape", keeps_types=True)
def constant_of_shape(call: Call, shape: Array) -> Array:
    value = call.get("value", np.zeros(1, np.float64 if call.wide else np.float32))
    return np.full(integers(shape), value.ravel()[0], value.dtype)


@operator("Shape", keeps_types=True)
def shape_of(call: Call, x: Array) -> Array:
    return np.array(x.shape[slice(call.get("start", 0), call.get("end"))], np.int64)


@operator("Size", keeps_types=True)
def size_of(_: Call, x: Array) -> Array:
    return np.array(x.size, np.int64)


@operator("Reshape", until=4, keeps_types=True)
def reshape_by_attribute(call: Call, x: Array) -> Array:
    return _reshaped(x, call.get("shape", []), allow_zero=False)


@operator("Reshape", since=5, keeps_types=True)
def reshape(call: Call, x: Array, shape: Array) -> Array:
    return _reshaped(x, integers(shape), allow_zero=bool(call.get("allowzero", 0)))


def _reshaped(x: Array, shape: Sequence[int], *, allow_zero: bool) -> Array:
    sizes = [x.shape[axis] if size == 0 and not allow_zero else size for axis, size in enumerate(shape)]
    if x.size == 0 and -1 in sizes:
        known = prod(size for size in sizes if size != -1)
        sizes = [(0 if not known else x.size // known) if size == -1 else size for size in sizes]
    return x.reshape(sizes)


@operator("Flatten", keeps_types=True)
def flatten(call: Call, x: Array) -> Array:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Squeeze", until=12, keeps_types=True)
def squeeze_by_attribute(call: Call, x: Array) -> Array:
    axes = call.get("axes")
    return np.squeeze(x, None if axes is None else tuple(axes))


@operator("Squeeze", since=13, keeps_types=True)
def squeeze(_: Call, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(integers(axes)))


@operator("Unsqueeze", until=12, keeps_types=True)
def unsqueeze_by_attribute(call: Call, x: Array) -> Array:
    return np.expand_dims(x, tuple(call.get("axes")))


@operator("Unsqueeze", since=13, keeps_types=True)
def unsqueeze(_: Call, x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(integers(axes)))


@operator("Transpose", keeps_types=True)
def transpose(call: Call, x: Array) -> Array:
    return np.transpose(x, call.get("perm"))


@operator("Expand", keeps_types=True)
def expand(_: Call, x: Array, shape: Array) -> Array:
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(integers(shape)))))


@operator("Tile", until=5, keeps_types=True)
def tile_one_axis(_: Call, x: Array, tiles: Array, axis: Array) -> Array:
    repeats = [1] * x.ndim
    repeats[integers(axis)[0]] = integers(tiles)[0]
    return np.tile(x, repeats)


@operator("Tile", since=6, keeps_types=True)
def tile(_: Call, x: Array, repeats: Array) -> Array:
    return np.tile(x, integers(repeats))


@operator("Concat", keeps_types=True)
def concat(call: Call, *parts: Array) -> Array:
    return np.concatenate(parts, call.get("axis", 1))


@operator("Split", keeps_types=True)
def split(call: Call, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    axis = call.get("axis", 0)
    total, count = x.shape[axis], call.get("num_outputs") or len(call.outputs)
    if sizes is not None or call.get("split"):
        lengths = integers(sizes if sizes is not None else call.get("split"))
    else:
        each = -(-total // count)
        lengths = [max(0, min(each, total - index * each)) for index in range(count)]
    if sum(lengths) != total:
        raise ValueError(f"the parts {lengths} are not the {total} elements of axis {axis}")
    return tuple(np.split(x, list(accumulate(lengths))[:-1], axis))


@operator("DepthToSpace", keeps_types=True)
def depth_to_space(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    block = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth", keeps_types=True)
def space_to_depth(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    block = call.get("blocksize")
    parts = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.transpose(order).reshape(n, c * block**2, h // block, w // block)


@operator("EyeLike", keeps_types=True)
def eye_like(call: Call, x: Array) -> Array:
    return np.eye(x.shape[0], x.shape[1], call.get("k", 0), dtype=call.dtype("dtype") or x.dtype)


@operator("Range", keeps_types=True)
def arithmetic_range(_: Call, start: Array, limit: Array, delta: Array) -> Array:
    """start + i * delta, with the number of elements ceil((limit - start) / delta)."""
    dtype = start.dtype
    if dtype.kind in "iu":
        return np.array(range(*(int(value.reshape(())) for value in (start, limit, delta))), dtype)
    first, last, step = (float(value.reshape(())) for value in (start, limit, delta))
    count = max(int(np.ceil((last - first) / step)), 0)
    return (first + np.arange(count) * step).astype(dtype)


@operator("Dropout", until=6, keeps_types=True)
def dropout_of_first_versions(_: Call, x: Array) -> tuple[Array, ...]:
    """`is_test` = 0 would train, which no runtime does."""
    return x, np.ones(x.shape, x.dtype)


@operator("Dropout", since=7, until=11, keeps_types=True)
def dropout_of_inference(call: Call, x: Array) -> tuple[Array, ...]:
    return x, np.ones(x.shape, bool if call.version >= 10 else x.dtype)
