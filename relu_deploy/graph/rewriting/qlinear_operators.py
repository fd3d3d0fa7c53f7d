"""The form in floats of each operator on quantized numbers, for `qlinear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.model import opset_of
from relu_deploy.graph.rewriting.qlinear_rewriter import Rewriter

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CONTRIB", "MOVING", "STATIC", "ended", "kept_attributes", "operand", "rank_of"]

CONTRIB = "com.microsoft"
#: operators that only move numbers, with how many of their results have the numbers' scale; the order of numbers is the same before
#: and after quantizing, so that a largest number is one as well
MOVING = {
    "DepthToSpace": 1,
    "Expand": 1,
    "Flatten": 1,
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "Identity": 1,
    "MaxPool": 1,
    "Pad": 1,
    "Reshape": 1,
    "Slice": 1,
    "SpaceToDepth": 1,
    "Split": 1 << 16,
    "Squeeze": 1,
    "Tile": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}


def _number(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def kept_attributes(node: ir.Node, *left_out: str) -> dict[str, ir.Attr]:
    """Return the attributes of `node` by name, without those called `left_out`."""
    return {name: attribute for name, attribute in node.attributes.items() if name not in left_out}


def operand(node: ir.Node, place: int) -> ir.Value | None:
    """Return the input of `node` at `place`, None where it has none."""
    return node.inputs[place] if place < len(node.inputs) else None


def rank_of(*values: ir.Value | None) -> int | None:
    """Return the number of dimensions of the first of `values` that says it."""
    for value in values:
        if value is not None and value.const_value is not None:
            return len(value.const_value.shape)
        if value is not None and value.shape is not None:
            return len(value.shape)
    return None


def _bias(rewriter: Rewriter, node: ir.Node, place: int, scales: tuple[int, int], factor: float = 1.0) -> ir.Value | None:
    """Return the floats of a bias of 32 bits, whose scale is the product of two others. Raises LookupError where these are computed."""
    bias = operand(node, place)
    if bias is None:
        return None
    first, second = (constant_of(operand(node, each)) for each in scales)
    if first is None or second is None:
        raise LookupError
    product = np.asarray(np.float32(factor) * first.reshape(-1)[0] * second, np.float32)
    scale = rewriter.constant(f"{node.name}/bias_scale", product.reshape(()) if product.size == 1 else product.reshape(-1))
    return rewriter.dequantized(node, bias, scale, None, axis=-1)


def _convolution(rewriter: Rewriter, node: ir.Node) -> None:
    last = _number(node, "channels_last", 0)
    rank = rank_of(operand(node, 3), operand(node, 0))
    if last and rank is None:
        return
    try:
        bias = _bias(rewriter, node, 8, (1, 4))
    except LookupError:
        return
    x, w = rewriter.load(node, 0), rewriter.load(node, 3, axis=0)

    def compute(first: ir.Value) -> ir.Value:
        return rewriter.insert(node, "Conv", [first, w, *([bias] if bias else [])], kept_attributes(node, "channels_last"))

    ended(rewriter, node, *_with_channels_first(rewriter, node, x, compute, rank if last else None))


def _with_channels_first(
    rewriter: Rewriter, node: ir.Node, x: ir.Value, compute: Callable[[ir.Value], ir.Value], rank: int | None
) -> tuple[ir.Value, ir.Value]:
    """Return what `compute` returns of `x`, and the same in the layout of `x`. rank: Of `x`, None where its channels are on axis 1."""
    if rank is None:
        made = compute(x)
        return made, made
    forth, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    made = compute(rewriter.insert(node, "Transpose", [x], {"perm": forth}))
    return made, rewriter.insert(node, "Transpose", [made], {"perm": back})


def ended(rewriter: Rewriter, node: ir.Node, computing: ir.Value, result: ir.Value | None = None, axis: int = 1) -> None:
    """Put what was made in the place of `node`: `computing`, and `result` of it where the layout differs."""
    rewriter.store(node, computing if result is None else result, axis)
    rewriter.finish(node, computing)


def _matrix_product(rewriter: Rewriter, node: ir.Node) -> None:
    if any((rank_of(operand(node, place)) or 0) > 1 for place in (1, 4, 6)):
        # A scale for each matrix of a batch is no axis of DequantizeLinear.
        return
    a, b = rewriter.load(node, 0, axis=-2), rewriter.load(node, 3, axis=-1)
    ended(rewriter, node, rewriter.insert(node, "MatMul", [a, b]), axis=-2)


def _gemm(rewriter: Rewriter, node: ir.Node) -> None:
    alpha = float(node.attributes["alpha"].as_float()) if "alpha" in node.attributes else 1.0
    try:
        bias = _bias(rewriter, node, 6, (1, 4), alpha)
    except LookupError:
        return
    a, b = rewriter.load(node, 0), rewriter.load(node, 3, axis=0 if _number(node, "transB", 0) else 1)
    ended(rewriter, node, rewriter.insert(node, "Gemm", [a, b, *([bias] if bias else [])], kept_attributes(node)))


def _binary(operator: str) -> Callable[[Rewriter, ir.Node], None]:
    def expand(rewriter: Rewriter, node: ir.Node) -> None:
        ended(rewriter, node, rewriter.insert(node, operator, [rewriter.load(node, 0), rewriter.load(node, 3)]))

    return expand


def _unary(operator: str) -> Callable[[Rewriter, ir.Node], None]:
    def expand(rewriter: Rewriter, node: ir.Node) -> None:
        last, x = _number(node, "channels_last", 0), operand(node, 0)
        rank = len(node.attributes["kernel_shape"].as_ints()) + 2 if "kernel_shape" in node.attributes else rank_of(x)
        if last and rank is None:
            return

        def compute(first: ir.Value) -> ir.Value:
            return rewriter.insert(node, operator, [first], kept_attributes(node, "channels_last"))

        ended(rewriter, node, *_with_channels_first(rewriter, node, rewriter.load(node, 0), compute, rank if last else None))

    return expand


def _softmax(rewriter: Rewriter, node: ir.Node) -> None:
    axis, rank = _number(node, "axis", -1), rank_of(operand(node, 0))
    version = opset_of(rewriter.model)
    is_last = axis == -1 or (rank is not None and axis == rank - 1)
    # Before version 13 all axes from the given one on counted as one.
    if is_last or (_number(node, "opset", 13) >= 13 and version >= 13):
        ended(rewriter, node, rewriter.insert(node, "Softmax", [rewriter.load(node, 0)], {"axis": axis}))


def _mean(rewriter: Rewriter, node: ir.Node) -> None:
    axes = [int(axis) for axis in node.attributes["axes"].as_ints()] if "axes" in node.attributes else []
    attributes: dict[str, Any] = {"keepdims": _number(node, "keepdims", 1)}
    operands: list[ir.Value | None] = [rewriter.load(node, 0)]
    if axes and opset_of(rewriter.model) >= 18:
        operands.append(rewriter.constant(f"{node.name}/axes", np.array(axes, np.int64)))
    elif axes:
        attributes["axes"] = axes
    ended(rewriter, node, rewriter.insert(node, "ReduceMean", operands, attributes))


def _concatenation(rewriter: Rewriter, node: ir.Node) -> None:
    parts = [rewriter.load(node, place) for place in range(2, len(node.inputs), 3)]
    ended(rewriter, node, rewriter.insert(node, "Concat", parts, kept_attributes(node)))


def _choice(rewriter: Rewriter, node: ir.Node) -> None:
    operands = [operand(node, 0), rewriter.load(node, 1), rewriter.load(node, 4)]
    ended(rewriter, node, rewriter.insert(node, "Where", operands))


#: by domain and operator: what puts the form in floats in the place of a node with scales of its own, or leaves the node as it is
STATIC: Mapping[tuple[str, str], Callable[[Rewriter, ir.Node], None]] = {
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _matrix_product,
    (CONTRIB, "QGemm"): _gemm,
    (CONTRIB, "QLinearAdd"): _binary("Add"),
    (CONTRIB, "QLinearConcat"): _concatenation,
    (CONTRIB, "QLinearConv"): _convolution,
    (CONTRIB, "QLinearMul"): _binary("Mul"),
    (CONTRIB, "QLinearReduceMean"): _mean,
    (CONTRIB, "QLinearSoftmax"): _softmax,
    (CONTRIB, "QLinearWhere"): _choice,
    **{(CONTRIB, f"QLinear{name}"): _unary(name) for name in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")},
}
