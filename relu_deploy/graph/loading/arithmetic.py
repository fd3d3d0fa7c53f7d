"""Refuse graphs whose arithmetic takes hours: what the shapes say is known before anything runs.

Tensors may be small enough, and a hundred products of them take a day. The cost is counted in multiply-adds of a matrix product; other
operators take longer for each element. Sizes that vary count as 1, and the inside of a Loop or Scan as often as it is known to run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from relu_deploy.errors import TooLong
from relu_deploy.graph.loading.loops import GraphRuns, graph_runs
from relu_deploy.graph.multiply_adds import multiply_adds
from relu_deploy.run_limit import ALLOW_MORE, runs_are_limited

if TYPE_CHECKING:
    import onnx

__all__ = ["MOST_MULTIPLY_ADDS", "check_arithmetic", "cost_of_run"]

#: most multiply-adds of one run where runs are limited. Two processor cores take an hour for them in float64 (27e9 a second) and half
#: an hour in float32; the largest image and language models at usual sizes need 1e12 to 2e13
MOST_MULTIPLY_ADDS = 10**14
#: multiply-adds that take as long as one element of another operator (0.2e9 to 0.9e9 elements a second in float64)
ELEMENT = 50
#: multiply-adds that take as long as one step of a recurrent operator by itself, 20 microseconds
STEP = 5 * 10**5
#: operators that compute nothing, or sizes only
FREE = frozenset(
    ["Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size", "If", "Loop", "Scan", "Dropout"]
)
#: operator → the one whose multiply-adds it has, and the position of the weights among its inputs
SAME_AS = {
    "ConvInteger": ("Conv", 1),
    "DeformConv": ("Conv", 1),
    "FusedConv": ("Conv", 1),
    "NhwcConv": ("Conv", 1),
    "NhwcFusedConv": ("Conv", 1),
    "QLinearConv": ("Conv", 3),
    "DynamicQuantizeMatMul": ("MatMul", 1),
    "FusedGemm": ("Gemm", 1),
    "FusedMatMul": ("MatMul", 1),
    "MatMulBnb4": ("MatMul", 1),
    "MatMulInteger": ("MatMul", 1),
    "MatMulIntegerToFloat": ("MatMul", 1),
    "MatMulNBits": ("MatMul", 1),
    "QGemm": ("Gemm", 1),
    "QLinearMatMul": ("MatMul", 1),
}

Shape = tuple[int, ...]


class _Node(NamedTuple):
    """A node with the shapes of its inputs and outputs, () where one is absent or not known."""

    proto: onnx.NodeProto
    inputs: list[Shape]
    outputs: list[Shape]

    def input(self, index: int) -> Shape:
        return self.inputs[index] if index < len(self.inputs) else ()

    @property
    def elements(self) -> int:
        """The number of elements of the largest output."""
        return max(map(prod, self.outputs), default=1)

    def attribute(self, name: str) -> onnx.AttributeProto | None:
        return next((each for each in self.proto.attribute if each.name == name), None)

    def integer(self, name: str, default: int = 0) -> int:
        found = self.attribute(name)
        return default if found is None else found.i


def check_arithmetic(model: onnx.ModelProto, where: str) -> None:
    """Check how much `model` computes, where runs are limited.

    Args:
        model: A graph with inferred shapes, its nodes in order.
        where: The file's name for error messages.

    Raises:
        TooLong: If one run takes more than `MOST_MULTIPLY_ADDS`.
    """
    if not runs_are_limited():
        return
    total, largest = cost_of_run(model)
    if total > MOST_MULTIPLY_ADDS:
        name = largest.name or next(iter(largest.output), "")
        raise TooLong(
            f"{where}: one run takes as long as {total:.2g} multiply-adds, most of all the {largest.op_type} {name!r}; "
            f"more than {MOST_MULTIPLY_ADDS:.0e} may take hours",
            ALLOW_MORE,
        )


def cost_of_run(model: onnx.ModelProto) -> tuple[int, onnx.NodeProto]:
    """Return the cost of one run of `model` in multiply-adds, and the node that costs most.

    Both branches of an If count.
    """
    import onnx

    total, most, largest = 0, 0, onnx.NodeProto()
    for runs in graph_runs(model):
        shape = _shapes(runs)
        for node in runs.nodes:
            if node.op_type in FREE:
                continue
            cost = runs.turns * _cost(_Node(node, [shape(name) for name in node.input], [shape(name) for name in node.output]))
            total += cost
            if cost > most:
                most, largest = cost, node
    return total, largest


def _shapes(runs: GraphRuns) -> Callable[[str], Shape]:
    """Return a function from the name of a tensor to its shape, with 1 for sizes that vary."""
    known: dict[str, Shape] = {}

    def shape(name: str) -> Shape:
        if name not in known:
            kind = runs.types.get(name)
            dims = () if kind is None else kind.tensor_type.shape.dim
            known[name] = runs.dims.get(name) or tuple(dim.dim_value if dim.dim_value > 0 else 1 for dim in dims)
        return known[name]

    return shape


def _cost(node: _Node) -> int:
    operator = node.proto.op_type
    if special := _SPECIAL.get(operator):
        return special(node)
    base, weights = SAME_AS.get(operator, (operator, 1))
    found = multiply_adds(base, node.elements, [node.input(0), node.input(weights)], bool(node.integer("transA")))
    if found is not None:
        return found
    reads_all = operator.startswith(("Arg", "Global", "Reduce"))
    return ELEMENT * max(node.elements, prod(node.input(0)) if reads_all else 1)


def _pool(node: _Node) -> int:
    kernel = node.attribute("kernel_shape")
    return ELEMENT * node.elements * (1 if kernel is None else max(1, prod(kernel.ints)))


def _normalization(node: _Node) -> int:
    return ELEMENT * node.elements * max(1, node.integer("size", 1))


def _recurrent(node: _Node) -> int:
    """Each row of each step is multiplied with the weights of the inputs and of the state. The steps run one after the other."""
    steps, rows = (node.input(0) or (1,))[0], prod(node.input(0)[:2])
    return STEP * steps + rows * (prod(node.input(1)) + prod(node.input(2))) + ELEMENT * node.elements


def _attention(node: _Node) -> int:
    """Each query is multiplied with all keys, and the result with all values."""
    query, key = node.input(0), node.input(1)
    return 2 * prod(query) * (key[-2] if len(key) > 1 else 1) + ELEMENT * node.elements


def _einsum(node: _Node) -> int:
    """Each combination of all indices is a product; the axes of an ellipsis are those of the output."""
    equation = node.attribute("equation")
    terms = [] if equation is None else re.sub(rb"\s", b"", equation.s).split(b"->")[0].split(b",")
    sizes: dict[int, int] = {}
    for term, shape in zip(terms, node.inputs, strict=False):
        before, _, after = term.partition(b"...")
        ends = (zip(before, shape, strict=False), zip(reversed(after), reversed(shape), strict=False))
        for label, size in (pair for end in ends for pair in end):
            sizes[label] = max(sizes.get(label, 1), size)
    return prod(sizes.values()) if not any(b"..." in term for term in terms) else max(prod(sizes.values()), 1) * node.elements


def _suppression(node: _Node) -> int:
    """In the worst case each box is compared with all others, for each class."""
    boxes, scores = node.input(0), node.input(1)
    count = boxes[1] if len(boxes) > 1 else 1
    return ELEMENT * prod(scores[:2]) * count * count


def _regions(node: _Node) -> int:
    return ELEMENT * node.elements * max(1, node.integer("sampling_ratio")) ** 2


def _per_matrix(node: _Node) -> int:
    """A determinant or inverse takes as many operations for each element as the matrix has rows."""
    shape = node.input(0)
    return ELEMENT * prod(shape) * (shape[-1] if shape else 1)


_SPECIAL: Mapping[str, Callable[[_Node], int]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Det": _per_matrix,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "GroupQueryAttention": _attention,
    "Inverse": _per_matrix,
    "LRN": _normalization,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MaxPool": _pool,
    "MultiHeadAttention": _attention,
    "NonMaxSuppression": _suppression,
    "QLinearAveragePool": _pool,
    "RNN": _recurrent,
    "RoiAlign": _regions,
}
