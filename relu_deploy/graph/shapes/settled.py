"""Constants in the place of tensors that follow from constants and from sizes that the graph fixes.

Exporters write "squeeze it if that axis has one element" as an If whose condition is computed from a Shape, and paddings as
a dozen nodes on constants. Once the sizes of the inputs are fixed, all of these are numbers, although no initializer holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import Operands, constant_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_sizes"]

#: elements of the largest tensor that is computed: sizes, paddings and conditions are smaller
LARGEST = 64
#: integer types and bool of ONNX, by the value of the attribute `to`
EXACT: dict[int, Any] = {
    2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 12: np.uint32, 13: np.uint64,
}  # fmt: skip


def fold_sizes(model: ir.Model) -> bool:
    """Let what reads integers or booleans that are always the same read constants, in place; see `OPERATORS`.

    The nodes of the top graph that computed them stay. Sizes are those that the model records: infer them first.

    Returns:
        Whether there was such a tensor.
    """
    import onnx_ir as ir

    found = False
    for node in list(model.graph):
        if not is_standard(node) or node.op_type not in OPERATORS or len(node.outputs) != 1:
            continue
        result = node.outputs[0]
        if not list(result.uses()) or (value := _settled(node)) is None:
            continue
        name = f"{result.name}/settled"
        tensor = ir.tensor(value, name=name)
        constant = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape))
        model.graph.register_initializer(constant)
        result.replace_all_uses_with(constant)
        found = True
    return found


def _settled(node: ir.Node) -> Array | None:
    """Return what `node` always returns, None where that depends on the data or is not known."""
    operands = Operands(node, {}, 0)
    if node.op_type in SIZES:
        shape = operands.shape()
        sizes = [size for size in shape or () if isinstance(size, int)]
        arrays = [np.array(sizes, np.int64)] if shape is not None and len(sizes) == len(shape) else []
    else:
        known = [constant_of(value) for value in node.inputs]
        arrays = [array for array in known if array is not None and array.size <= LARGEST and array.dtype.kind in "iub"]
    if len(arrays) != max(1, len(node.inputs)):
        return None
    try:
        result = OPERATORS[node.op_type](operands, arrays)
    except (IndexError, ValueError, TypeError, OverflowError):
        return None  # the graph does not fit together here: what runs it says so
    return None if result is None or result.size > LARGEST else np.ascontiguousarray(result).reshape(result.shape)


def _shape(operands: Operands, arrays: list[Array]) -> Array:
    return arrays[0][slice(operands.attribute("start", 0), operands.attribute("end", None))]


def _cast(operands: Operands, arrays: list[Array]) -> Array | None:
    to = EXACT.get(int(operands.attribute("to", 0)))
    return None if to is None else arrays[0].astype(to)


def _constant_of_shape(operands: Operands, arrays: list[Array]) -> Array | None:
    value = operands.attribute("value", None)
    fill = None if value is None else value.numpy().reshape(-1)[0]
    # Without the attribute the result is of float32.
    if fill is None or fill.dtype.kind not in "iub" or prod(int(size) for size in arrays[0]) > LARGEST:
        return None
    return np.full([int(size) for size in arrays[0]], fill)


def _axes(operands: Operands, arrays: list[Array]) -> tuple[int, ...] | None:
    given = arrays[1] if len(arrays) > 1 else operands.attribute("axes", None)
    return None if given is None else tuple(int(axis) for axis in given)


def _slice(operands: Operands, arrays: list[Array]) -> Array:
    given = [operands.integers(position, name) for position, name in ((1, "starts"), (2, "ends"), (3, "axes"))]
    starts, ends, axes = given
    if starts is None or ends is None:
        raise ValueError("a Slice has starts and ends")
    steps = operands.integers(4) or [1] * len(starts)
    cut = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, range(len(starts)) if axes is None else axes, steps, strict=True):
        # Backwards to before the first, which ONNX writes as a very negative end, is None in Python.
        cut[axis] = slice(start, None if step < 0 and end < -arrays[0].shape[axis] else end, step)
    return arrays[0][tuple(cut)]


def _reshape(operands: Operands, arrays: list[Array]) -> Array:
    sizes = [int(size) for size in arrays[1]]
    if not operands.attribute("allowzero", 0):
        sizes = [arrays[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return arrays[0].reshape(sizes)


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Operands, list[Array]], Array]:
    return lambda _, arrays: np.asarray(function(arrays[0], arrays[1]))


#: operators whose result follows from the sizes of their input, not from its numbers
SIZES = ("Shape", "Size")
OPERATORS: dict[str, Callable[[Operands, list[Array]], Array | None]] = {
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Cast": _cast,
    "Concat": lambda operands, arrays: np.concatenate(arrays, int(operands.attribute("axis", 0))),
    "ConstantOfShape": _constant_of_shape,
    "Equal": _binary(np.equal),
    "Gather": lambda operands, arrays: np.asarray(np.take(arrays[0], arrays[1], int(operands.attribute("axis", 0)))),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Identity": lambda _, arrays: arrays[0],
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Mul": _binary(np.multiply),
    "Not": lambda _, arrays: np.asarray(np.logical_not(arrays[0])),
    "Or": _binary(np.logical_or),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda _, arrays: np.array(prod(int(size) for size in arrays[0]), np.int64),
    "Slice": _slice,
    "Squeeze": lambda operands, arrays: np.squeeze(arrays[0], _axes(operands, arrays)),
    "Sub": _binary(np.subtract),
    "Transpose": lambda operands, arrays: np.transpose(arrays[0], operands.attribute("perm", None)),
    "Unsqueeze": lambda operands, arrays: np.expand_dims(arrays[0], _axes(operands, arrays) or ()),
}
