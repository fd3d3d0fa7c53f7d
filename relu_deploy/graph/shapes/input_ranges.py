"""Derive the values that a graph accepts at its integer inputs: table indices, one-hot classes, sequence lengths.

Each integer input is followed through operators that copy, reorder or shift its values, to the operators that index with
them. Nested graphs are followed as well. Inputs that index nothing have no entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of, shape_of
from relu_deploy.graph.shapes.dimensions import set_input_shapes
from relu_deploy.graph.shapes.shape_inference import infer_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["indexed_sizes", "integer_ranges"]

#: operators whose first output has only values of the inputs listed here
_COPYING = {
    **dict.fromkeys(
        ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"), (0,)
    ),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Pad", "Split", "Dropout", "If", "TopK", "Unique"), (0,)),
    **dict.fromkeys(("MaxPool", "ReduceMax", "ReduceMin", "DepthToSpace", "SpaceToDepth", "Compress", "Clip", "Relu"), (0,)),
    **dict.fromkeys(("Max", "Min"), (0, 1)),
    "Where": (1, 2),
}
#: operator → (position of the indices, position of the indexed tensor); the axis is an attribute
_INDEXING = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "GatherND": (1, 0),
    "ScatterElements": (1, 0),
    "ScatterND": (1, 0),
    "Scatter": (1, 0),
    "RoiAlign": (2, 0),
}
#: com.microsoft.EmbedLayerNormalization: position of the ids → position of their table
_EMBEDDING_TABLES = {0: 2, 1: 4, 8: 3}

Range = tuple[int, int]


def integer_ranges(model: ir.Model, shapes: Mapping[str, Sequence[int | str]] | None = None) -> dict[str, Range]:
    """Return the values that `model` accepts at its integer inputs, as far as the graph determines them.

    Args:
        model: Shapes are inferred where it records none; a table whose size is unknown sets no limit.
        shapes: Shapes of all inputs, for tables whose size follows from them, such as the nodes that edges refer to.

    Returns:
        By input name, the smallest and the largest valid value, both inclusive. Inputs without a known limit are absent.
    """
    if shapes is not None and _has_varying_tables(model):
        # Shapes that the graph does not accept are met, and named, by what runs it.
        with suppress(InputError, UsageError):
            model = set_input_shapes(model, shapes)
    ranges: dict[str, Range] = {}
    integers = [value for value in model.graph.inputs if value.dtype is not None and value.dtype.is_integer()]
    if integers and any(value.shape is None for node in model.graph for value in node.outputs):
        names = {value.name for value in integers}
        model = model.clone()
        infer_shapes(model)
        integers = [value for value in model.graph.inputs if value.name in names]
    for value in integers:
        if value.is_initializer():
            continue
        limits = _limits(value)
        if limits is not None and limits[0] <= limits[1]:
            ranges[str(value.name)] = limits
    return ranges


def indexed_sizes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> list[int | None]:
    """Return the sizes of the axes that integer inputs of `model` index, None for each that is not known; [] for shapes that do not fit.

    Args:
        model: It is not modified.
        shapes: Shapes of all inputs.
    """
    if not _has_varying_tables(model):
        return []
    try:
        sized = set_input_shapes(model, shapes)
    except (InputError, UsageError):
        return []
    integers = [value for value in sized.graph.inputs if value.dtype is not None and value.dtype.is_integer()]
    return [_indexed_size(node) for value in integers for node, position, _ in _readers(value) if _indexes(node, position)]


def _indexes(node: ir.Node, position: int) -> bool:
    return is_standard(node) and _INDEXING.get(node.op_type, (-1,))[0] == position


def _indexed_size(node: ir.Node) -> int | None:
    """Return the size of the axis that `node` indexes, None where it varies or the indices are of several axes."""
    table = node.inputs[_INDEXING[node.op_type][1]]
    axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 0
    if node.op_type in ("GatherND", "ScatterND"):
        indices = shape_of(node.inputs[1]) if node.inputs[1] is not None else None
        axis = int(node.attributes["batch_dims"].value) if "batch_dims" in node.attributes else 0
        if not indices or indices[-1] != 1:
            return None
    return _size(table, axis)


def _has_varying_tables(model: ir.Model) -> bool:
    """Return whether an integer input indexes something whose size follows from the shapes of the inputs."""
    integers = [value for value in model.graph.inputs if value.dtype is not None and value.dtype.is_integer()]
    return any(
        _indexes(node, position) and _accepted(node, position) is None
        for value in integers
        for node, position, _ in _readers(value)
    )


def _limits(source: ir.Value) -> Range | None:
    """Return the intersection of what every indexing reader of `source` accepts."""
    low, high = -np.inf, np.inf
    for node, position, shift in _readers(source):
        accepted = _accepted(node, position)
        if accepted is not None:
            low, high = max(low, accepted[0] - shift), min(high, accepted[1] - shift)
    return None if high == np.inf else (int(max(low, 0)), int(high))


def _readers(source: ir.Value) -> Iterator[tuple[ir.Node, int, int]]:
    """Yield each node that reads the values of `source`, the position of that input, and the constant added to the values."""
    waiting: list[tuple[ir.Value, int]] = [(source, 0)]
    seen = {(source, 0)}
    while waiting:
        value, shift = waiting.pop()
        for node, position in value.uses():
            yield node, position, shift
            for result, added in _copies(node, position):
                if (result, shift + added) not in seen:
                    seen.add((result, shift + added))
                    waiting.append((result, shift + added))


def _accepted(node: ir.Node, position: int) -> tuple[float, float] | None:
    """Return the values that `node` accepts as indices in the input there, None where they are no indices."""
    if node.op_type == "EmbedLayerNormalization" and position in _EMBEDDING_TABLES:
        table = _EMBEDDING_TABLES[position]
        size = _size(node.inputs[table], 0) if table < len(node.inputs) else None
        return None if size is None else (0, size - 1)
    if not is_standard(node):
        return None
    if _indexes(node, position):
        table_value = node.inputs[_INDEXING[node.op_type][1]]
        axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 0
        if node.op_type in ("GatherND", "ScatterND"):
            axis = int(node.attributes["batch_dims"].value) if "batch_dims" in node.attributes else 0
            indices = shape_of(node.inputs[1]) if node.inputs[1] is not None else None
            count = indices[-1] if indices and isinstance(indices[-1], int) else 1
            sizes = [_size(table_value, axis + offset) for offset in range(count)]
            known = [size for size in sizes if size is not None]
            return (0, min(known) - 1) if known else None
        size = _size(table_value, axis)
        return None if size is None else (0, size - 1)
    if node.op_type == "OneHot" and position == 0:
        depth = constant_of(node.inputs[1])
        return None if depth is None or depth.size != 1 else (0, float(depth.reshape(-1)[0]) - 1)
    if node.op_type in ("LSTM", "GRU", "RNN") and position == 4:
        steps = _size(node.inputs[0], 1 if "layout" in node.attributes and node.attributes["layout"].value else 0)
        return None if steps is None else (1, steps)
    if node.op_type == "ReverseSequence" and position == 1:
        steps = _size(node.inputs[0], int(node.attributes["time_axis"].value) if "time_axis" in node.attributes else 0)
        return None if steps is None else (1, steps)
    if node.op_type == "TopK" and position == 1:
        most = _size(node.inputs[0], int(node.attributes["axis"].value) if "axis" in node.attributes else -1)
        return None if most is None else (1, most)
    if node.op_type in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss") and position == 1:
        classes = _size(node.inputs[0], 1)
        return None if classes is None else (0, classes - 1)
    return None


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Return the fixed size of an axis, None where it varies or is unknown."""
    if value is None:
        return None
    constant = constant_of(value)
    shape = constant.shape if constant is not None else shape_of(value)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) and size > 0 else None


def _copies(node: ir.Node, position: int) -> list[tuple[ir.Value, int]]:
    """Return the results of `node` that hold the values of the input there, each with the constant added to them."""
    if not is_standard(node) or not node.outputs:
        return []
    if node.op_type in ("Add", "Sub"):
        other = constant_of(node.inputs[1 - position])
        if other is None or other.size == 0 or (node.op_type == "Sub" and position == 1):
            return []
        numbers = (int(other.min()), int(other.max()))
        sign = 1 if node.op_type == "Add" else -1
        # Both ends limit the input: the smallest number added its lowest value, the largest its highest.
        return [(node.outputs[0], sign * number) for number in dict.fromkeys(numbers)]
    if node.op_type == "Concat":
        return [(node.outputs[0], 0)]
    if position in _COPYING.get(node.op_type, ()):
        return [(value, 0) for value in (node.outputs if node.op_type == "Split" else node.outputs[:1])]
    return []
