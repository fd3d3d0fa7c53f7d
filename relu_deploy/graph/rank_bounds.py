"""Upper bounds of the rank and the size of what an operator computes, from those of its operands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from relu_deploy.graph.loading.structure import MAX_RANK

if TYPE_CHECKING:
    import onnx

__all__ = ["OPEN", "Bound", "bound_of_constant", "bound_of_result", "bound_of_type", "may_raise_rank", "union"]

#: an upper bound of a size that is not computed here
OPEN = 2**62
#: domains whose operators onnx infers
INFERRED = ("", "ai.onnx", "ai.onnx.ml")
#: ranks of results that do not follow from the operands' ranks
FIXED = {"Shape": 1, "Size": 0, "NonZero": 2, "Flatten": 2, "Range": 1, "RoiAlign": 4, "STFT": 4, "AffineGrid": 5}
FIXED |= dict.fromkeys(("LSTM", "GRU", "RNN"), 4)
#: operators whose result has one dimension more than their operand
RAISING = frozenset(["OneHot", "OneHotEncoder", "StringSplit"])
#: the other operators whose result may have more dimensions than their operands
SHAPING = frozenset(
    [
        "Col2Im", "ConcatFromSequence", "ConstantOfShape", "Einsum", "Expand", "Gather", "GatherND", "Loop", "RandomNormal",
        "RandomUniform", "Reshape", "Scan", "SequenceMap", "Unsqueeze"
    ]
)  # fmt: skip
#: operators whose result has at most as many elements as their first operand
PASSING = frozenset(
    [
        "Abs", "ArgMax", "ArgMin", "BitwiseNot", "Cast", "CastLike", "Ceil", "Clip", "Compress", "CumSum", "Flatten", "Floor", "Identity",
        "Neg", "Not", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze",
        "TopK", "Transpose", "Unsqueeze"
    ]
)  # fmt: skip
#: operators that broadcast their operands
ELEMENTWISE = frozenset(
    [
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or",
        "Pow", "Sub", "Where", "Xor"
    ]
)  # fmt: skip


class Bound(NamedTuple):
    """What inference finds about a tensor at most.

    Attributes:
        rank: The number of dimensions; None if it finds none.
        size: The number of elements; None if it finds none, `OPEN` if it is not bounded here.
        product: The product of a constant's elements, the size of what has it as its shape.
    """

    rank: int | None = None
    size: int | None = None
    product: int | None = None


def may_raise_rank(operator: str) -> bool:
    """Return whether the results of an operator may have more than 5 dimensions, and more than its operands."""
    return operator in RAISING or operator in SHAPING


def bound_of_result(node: onnx.NodeProto, operands: Sequence[Bound]) -> Bound:
    """Return the bound of the results of `node`, which holds no graph."""
    if node.domain not in INFERRED:
        return Bound()
    if node.op_type == "Constant":
        return _constant_of(node)
    rank = _rank(node, operands)
    return Bound() if rank is None else Bound(rank, _size(node, operands))


def _rank(node: onnx.NodeProto, operands: Sequence[Bound]) -> int | None:
    operator, first = node.op_type, operands[0].rank if operands else None
    known = [each.rank for each in operands if each.rank is not None]
    if operator in FIXED:
        return FIXED[operator]
    if operator in ("RandomNormal", "RandomUniform"):
        return _count(node, "shape")
    if operator == "ConstantOfShape":
        return operands[0].size if operands else None
    if operator == "Reshape" and len(operands) < 2:
        return _count(node, "shape")
    if operator in ("Reshape", "Expand", "Col2Im") and len(operands) > 1:
        size = operands[1].size
        if operator == "Reshape" or size is None:
            return size
        return size + 2 if operator == "Col2Im" else max(size, first or 0)
    if operator == "Einsum":
        return _einsum_rank(node, known)
    if operator == "CastLike":
        return first
    if first is None:
        return max(known, default=None)
    if operator in ("Gather", "GatherND") and len(operands) > 1:
        return None if operands[1].rank is None else first + operands[1].rank - (operator == "Gather")
    if operator in ("Squeeze", "Unsqueeze"):
        count = _axes(node, operands)
        return first + count if operator == "Unsqueeze" else max(0, first - count)
    if operator in RAISING or (operator == "ConcatFromSequence" and _integer(node, "new_axis", 0)):
        return first + 1
    if operator.startswith("Reduce") or operator in ("ArgMax", "ArgMin"):
        return first if _integer(node, "keepdims", 1) else max(0, first - _axes(node, operands))
    return max(known)


def _einsum_rank(node: onnx.NodeProto, known: list[int]) -> int:
    equation = next((each.s for each in node.attribute if each.name == "equation"), b"")
    _, arrow, result = equation.partition(b"->")
    if not arrow:
        return sum(known)
    return len(result.replace(b" ", b"").replace(b"...", b"")) + (max(known, default=0) if b"..." in result else 0)


def _size(node: onnx.NodeProto, operands: Sequence[Bound]) -> int | None:
    operator = node.op_type
    if operator == "Size":
        return 1
    if not operands:
        return OPEN
    first = operands[0]
    if operator == "Shape":
        return first.rank
    if operator in PASSING or operator.startswith("Reduce"):
        return first.size
    if operator == "Gather" and len(operands) > 1 and first.rank is not None and first.rank <= 1:
        return operands[1].size
    if operator == "Concat":
        return None if any(each.size is None for each in operands) else min(OPEN, sum(each.size or 0 for each in operands))
    if operator in ELEMENTWISE:
        sizes = [each.size for each in operands if each.size is not None]
        is_flat = all(each.rank is None or each.rank <= 1 for each in operands)
        return (max(sizes) if is_flat else min(OPEN, prod(sizes))) if sizes else None
    if operator == "ConstantOfShape" and first.product is not None:
        return first.product
    if operator == "Expand" and len(operands) > 1 and first.size is not None and operands[1].product is not None:
        return min(OPEN, first.size * operands[1].product)
    return OPEN


def _axes(node: onnx.NodeProto, operands: Sequence[Bound]) -> int:
    """Return the number of axes that `node` names, as an attribute or as its second operand."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return 1
    count = _count(node, "axes")
    if count or len(operands) < 2:
        return count
    size = operands[1].size
    # Inference reads axes from constants alone, whose sizes are known.
    return 0 if size is None or size == OPEN else size


def _count(node: onnx.NodeProto, name: str) -> int:
    return next((len(each.ints) for each in node.attribute if each.name == name), 0)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _constant_of(node: onnx.NodeProto) -> Bound:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            return bound_of_constant(attribute.t)
        if attribute.HasField("sparse_tensor"):
            return Bound(len(attribute.sparse_tensor.dims), prod(attribute.sparse_tensor.dims))
        if attribute.ints:
            return Bound(1, len(attribute.ints), _clipped(attribute.ints))
        if attribute.floats or attribute.strings:
            return Bound(1, len(attribute.floats) + len(attribute.strings))
    return Bound(0, 1)


def bound_of_constant(tensor: onnx.TensorProto) -> Bound:
    import onnx

    size, product = prod(tensor.dims), None
    is_shape = len(tensor.dims) <= 1 and size <= MAX_RANK and tensor.data_type == onnx.TensorProto.INT64
    if is_shape and tensor.data_location != onnx.TensorProto.EXTERNAL:
        product = _clipped(onnx.numpy_helper.to_array(tensor).reshape(-1).tolist())
    return Bound(len(tensor.dims), size, product)


def _clipped(sizes: Iterable[int]) -> int:
    return min(OPEN, prod(max(0, size) for size in sizes))


def bound_of_type(kind: onnx.TypeProto) -> Bound:
    """Return the bound of a tensor, or of the tensors in a sequence or optional, of the type `kind`."""
    while (field := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, field).elem_type
    if field not in ("tensor_type", "sparse_tensor_type"):
        return Bound()
    tensor = getattr(kind, field)
    if not tensor.HasField("shape"):
        return Bound()
    dims = tensor.shape.dim
    if all(dim.HasField("dim_value") for dim in dims):
        return Bound(len(dims), _clipped(dim.dim_value for dim in dims))
    return Bound(len(dims), None if len(dims) == 1 else OPEN)


def union(*bounds: Bound) -> Bound:
    """Return the bound of a tensor for which one of `bounds` holds."""
    ranks = [each.rank for each in bounds if each.rank is not None]
    sizes = [each.size for each in bounds if each.size is not None]
    return Bound(max(ranks, default=None), max(sizes, default=None))
