"""Shape inference that follows the values of computed shapes, in linear time whatever the graph computes.

onnx's data propagation holds each vector that certain operators read element by element, about 250 bytes an element, also one
that is no shape and one whose values are unknown: a cast of a billion elements takes minutes and all memory. Nodes that may read
a long vector are hidden from it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from relu_deploy.graph.loading.structure import MAX_RANK
from relu_deploy.graph.loading.traversal import bodies_of
from relu_deploy.graph.rank_bounds import may_raise_rank
from relu_deploy.graph.ranks import check_ranks
from relu_deploy.graph.unfollowed import FOLLOWING, HiddenNodes

if TYPE_CHECKING:
    import onnx

__all__ = ["infer_with_values"]

#: elements of the longest vector that is followed: a shape has at most 64
MOST_ELEMENTS = 1024
#: elements of all followed vectors together that are longer than a shape
MOST_IN_ALL = 2**17
#: operators that follow values element by element, and one that infers the same types and shapes without following values
ELEMENTWISE, UNFOLLOWED = frozenset(["Add", "Sub", "Mul"]), "Div"
#: operators whose result is as long as their first input at most
PASSING = frozenset(["Cast", "Identity", "Slice", "Squeeze", "Unsqueeze"])
#: passes at most; each settles the lengths that depend on the values found by the one before
MOST_PASSES = 6

Lengths = ChainMap[str, int]


def infer_with_values(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return `proto` with the inferred types and shapes; in the result some nodes have another operator and other inputs.

    Args:
        proto: The graph, without its large weights. It is not changed.
        options: As for `onnx.shape_inference.infer_shapes`.

    Raises:
        TooManyDimensions: If a tensor has more dimensions than runtimes support.
        onnx.shape_inference.InferenceError: As the options say.
    """
    import onnx

    # Most graphs have none of these operators, and it takes a fraction of the time to see that.
    operators = _operators_of(proto)
    if any(map(may_raise_rank, operators)):
        check_ranks(proto, _infer)
    if operators.isdisjoint(FOLLOWING | ELEMENTWISE):
        return onnx.shape_inference.infer_shapes(proto, data_prop=True, **options)
    return _infer(proto, **options)


def _operators_of(proto: onnx.ModelProto) -> set[str]:
    """Return the types of the nodes of `proto`, those in bodies and functions included."""
    operators: set[str] = set()
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        for node in waiting.pop().node:
            operators.add(node.op_type)
            waiting += bodies_of(node)
    return operators


def _infer(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return what `infer_with_values` does of a graph whose ranks were checked."""
    import onnx

    search, functions = _Search(), _Search()
    try:
        search.visit(proto.graph, ChainMap())
        for function in proto.functions:
            functions.visit(function, ChainMap())
        if not search.suspects and not functions.suspects:
            return onnx.shape_inference.infer_shapes(proto, data_prop=True, **options)
        # What a function reads differs from call to call, and a function may call another.
        calls = {(function.domain, function.name) for function in proto.functions} if functions.suspects else set()
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=False, **options)
        nodes = HiddenNodes(proto, search.suspects, calls)
        for _ in range(MOST_PASSES):
            if not nodes.update(inferred):
                break
            with nodes.hidden():
                inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True, **options)
        return inferred
    finally:
        for each in (*search.restore, *functions.restore):
            each()


class _Search:
    """The nodes that may read a long vector, and the ones that are hidden from data propagation without loss.

    Attributes:
        suspects: The former.
        restore: What gives the latter their operators back.
    """

    def __init__(self) -> None:
        self.suspects: list[onnx.NodeProto] = []
        self.restore: list[Callable[[], None]] = []
        self._left = MOST_IN_ALL

    def visit(self, graph: onnx.GraphProto | onnx.FunctionProto, outer: Lengths) -> None:
        """Search `graph` and the graphs in it.

        Args:
            graph: Its nodes are in order, as far as they compute shapes; a node before its operands is not followed.
            outer: How many elements each tensor has whose value is followed, at most, in the graphs around it.
        """
        lengths = outer.new_child(_constants(getattr(graph, "initializer", ())))
        # Where a recorded length contradicts the computed one, inference keeps the former and follows no values.
        recorded = (*graph.value_info, *(value for value in graph.output if not isinstance(value, str)))
        distrusted = {value.name for value in recorded if _is_recorded_long(value)}
        for node in graph.node:
            for body in bodies_of(node):
                self.visit(body, lengths)
            length = self._charge(_length(node, lengths))
            operands = [lengths.get(name) for name in node.input if name]
            if length is not None:
                lengths.update((name, length) for name in node.output if name not in distrusted)
            if node.op_type in ELEMENTWISE and length is None:
                self.restore.append(partial(setattr, node, "op_type", node.op_type))
                node.op_type = UNFOLLOWED
            elif node.op_type in FOLLOWING and (length is None or any(each is None or each > MOST_ELEMENTS for each in operands)):
                self.suspects.append(node)

    def _charge(self, length: int | None) -> int | None:
        """Return `length`, or None where a vector of so many elements is too long to be followed."""
        if length is None or length <= MAX_RANK:
            return length
        if length > min(MOST_ELEMENTS, self._left):
            return None
        self._left -= length
        return length


def _is_recorded_long(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > MAX_RANK


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
