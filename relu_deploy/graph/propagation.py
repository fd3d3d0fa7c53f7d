"""Shape inference that follows the values of computed shapes, in linear time whatever the graph computes.

onnx's data propagation follows a vector of integers element by element through Add, Sub, Mul and Concat, also one that is no shape:
an addition to a vector of a billion elements takes minutes and gigabytes. Such nodes are hidden from it, except where all operands
come from shapes and small constants.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["infer_with_values"]

#: elements of the longest vector that is followed: a shape has at most 64
MOST_ELEMENTS = 1024
#: operators that follow values element by element, and one that infers the same types and shapes without following values
ELEMENTWISE, UNFOLLOWED = frozenset(["Add", "Sub", "Mul"]), "Div"
#: operators whose result is as long as their first input at most
PASSING = frozenset(["Cast", "Identity", "Slice", "Squeeze", "Unsqueeze"])
#: dimensions that a tensor has at most, which the length of a shape is
MAX_RANK = 64

Lengths = ChainMap[str, int]


def infer_with_values(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return `proto` with the inferred types and shapes; in the result some nodes have another operator of the same kind.

    Args:
        proto: The graph, without its large weights. It is not changed.
        options: As for `onnx.shape_inference.infer_shapes`.
    """
    import onnx

    restore = _hide(proto.graph, ChainMap())
    for function in proto.functions:
        restore += _hide(function, ChainMap())
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True, **options)
    finally:
        for each in restore:
            each()


def _hide(graph: onnx.GraphProto | onnx.FunctionProto, outer: Lengths) -> list[Callable[[], None]]:
    """Hide nodes that are not to be followed, also in the graphs of nodes, and return what restores each.

    Args:
        graph: Its nodes are in order, as far as they compute shapes; a node before its operands is not followed.
        outer: How many elements each tensor has whose value is followed, at most, in the graphs around it.
    """
    lengths = outer.new_child(_constants(getattr(graph, "initializer", ())))
    restore: list[Callable[[], None]] = []
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                restore += _hide(body, lengths)
        length = _length(node, lengths)
        if length is not None:
            lengths.update(dict.fromkeys(node.output, length))
        if node.op_type in ELEMENTWISE and (length is None or length > MOST_ELEMENTS):
            restore.append(partial(setattr, node, "op_type", node.op_type))
            node.op_type = UNFOLLOWED
        elif node.op_type == "Concat" and length is not None and length > MOST_ELEMENTS:
            # Vectors are followed along axis 0 only, though for them -1 is the same.
            for attribute in node.attribute:
                restore.append(partial(setattr, attribute, "i", attribute.i))
                attribute.i = -1
    return restore


def _constants(tensors: Iterable[onnx.TensorProto]) -> dict[str, int]:
    return {tensor.name: length for tensor in tensors if (length := _elements(tensor)) is not None}


def _elements(tensor: onnx.TensorProto) -> int | None:
    """Return the number of elements of a vector or scalar of integers, None for another tensor."""
    import onnx

    if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or len(tensor.dims) > 1:
        return None
    return tensor.dims[0] if tensor.dims else 1


def _length(node: onnx.NodeProto, lengths: Lengths) -> int | None:
    """Return the most elements of the value that is followed through `node`, None if none is."""
    if node.op_type in ("Shape", "Size"):
        return MAX_RANK
    if node.op_type == "Constant":
        counts = [_elements(each.t) if each.HasField("t") else len(each.ints) or 1 for each in node.attribute]
        return counts[0] if counts else None
    operands = [lengths.get(name) for name in node.input if name]
    if not operands or operands[0] is None:
        return None
    if node.op_type in PASSING:
        return operands[0]
    known = [count for count in operands if count is not None]
    if len(known) < len(operands):
        return None
    if node.op_type == "Gather":
        return known[-1]
    if node.op_type == "Concat":
        return sum(known)
    return max(known) if node.op_type in ELEMENTWISE else None
