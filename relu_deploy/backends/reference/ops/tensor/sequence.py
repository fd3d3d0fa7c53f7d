"""Sequences (lists) and optional values (None when empty)."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@operator("SequenceConstruct", keeps_types=True)
def construct(_: Call, *items: Any) -> list[Any]:
    return list(items)


@operator("SequenceEmpty", keeps_types=True)
def empty(_: Call) -> list[Any]:
    return []


@operator("SequenceAt", keeps_types=True)
def at(_: Call, sequence: list[Any], position: Array) -> Any:
    return sequence[integers(position)[0]]


@operator("SequenceInsert", keeps_types=True)
def insert(_: Call, sequence: list[Any], item: Any, position: Array | None = None) -> list[Any]:
    result = list(sequence)
    result.insert(len(result) if position is None else integers(position)[0], item)
    return result


@operator("SequenceErase", keeps_types=True)
def erase(_: Call, sequence: list[Any], position: Array | None = None) -> list[Any]:
    result = list(sequence)
    del result[-1 if position is None else integers(position)[0]]
    return result


@operator("SequenceLength", keeps_types=True)
def length(_: Call, sequence: list[Any]) -> Array:
    return np.array(len(sequence), np.int64)


@operator("SplitToSequence", keeps_types=True)
def split_to_sequence(call: Call, x: Array, sizes: Array | None = None) -> list[Array]:
    axis = call.get("axis", 0)
    total = x.shape[axis]
    if sizes is None:
        parts = np.split(x, total, axis)
        return parts if call.get("keepdims", 1) else [np.squeeze(part, axis) for part in parts]
    if sizes.ndim == 0:
        step = int(sizes)
        return np.split(x, list(range(step, total, step)), axis)
    return np.split(x, list(np.cumsum(integers(sizes))[:-1]), axis)


@operator("ConcatFromSequence", keeps_types=True)
def concat_from_sequence(call: Call, sequence: list[Array]) -> Array:
    join = np.stack if call.get("new_axis", 0) else np.concatenate
    return join(sequence, axis=call.get("axis"))  # type: ignore[operator, no-any-return]


@operator("Optional", keeps_types=True)
def optional(_: Call, value: Any = None) -> Any:
    return value


@operator("OptionalHasElement", keeps_types=True)
def has_element(_: Call, value: Any = None) -> Array:
    return np.array(value is not None)


@operator("OptionalGetElement", keeps_types=True)
def get_element(_: Call, value: Any) -> Any:
    if value is None:
        raise ValueError("the optional value is empty")
    return value
