"""The form in floats of each operator whose scales are chosen when it runs or that packs its weights, for `qlinear`; and the table of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.rewriting.qlinear_operators import (
    CONTRIB,
    STATIC,
    ended,
    kept_attributes,
    operand,
    rank_of,
)
from relu_deploy.graph.rewriting.qlinear_rewriter import Rewriter
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EXPANSIONS"]


def _of_integers(rewriter: Rewriter, node: ir.Node, place: int, zero: ir.Value | None, axis: int) -> ir.Value:
    """Return the operand at `place` less its zero point, as floats."""
    numbers, constant = operand(node, place), constant_of(zero)
    assert numbers is not None
    one = rewriter.constant(
        f"{node.name}/one", np.ones(() if constant is None or constant.size == 1 else constant.shape, np.float32)
    )
    return rewriter.dequantized(node, numbers, one, zero, axis)


def _integer_convolution(rewriter: Rewriter, node: ir.Node) -> None:
    x, w = (_of_integers(rewriter, node, place, operand(node, place + 2), 0) for place in (0, 1))
    ended(rewriter, node, rewriter.insert(node, "Conv", [x, w], kept_attributes(node)))


def _integer_product(rewriter: Rewriter, node: ir.Node) -> None:
    if any((rank_of(operand(node, place)) or 0) > 1 for place in (2, 3)):
        return
    a, b = (_of_integers(rewriter, node, place, operand(node, place + 2), axis) for place, axis in ((0, -2), (1, -1)))
    ended(rewriter, node, rewriter.insert(node, "MatMul", [a, b]))


def _product_to_floats(rewriter: Rewriter, node: ir.Node) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (operand(node, place) for place in range(7))
    if a is None or b is None or a_scale is None or b_scale is None or (rank_of(a_scale) or 0) > 1:
        return
    product = [rewriter.dequantized(node, a, a_scale, a_zero, -2), rewriter.dequantized(node, b, b_scale, b_zero, -1)]
    _with_bias(rewriter, node, rewriter.insert(node, "MatMul", product), bias)


def _dynamic_product(rewriter: Rewriter, node: ir.Node) -> None:
    a, b, b_scale, b_zero, bias = (operand(node, place) for place in range(5))
    if a is None or b is None or b_scale is None:
        return
    stored = rewriter.insert(node, "DynamicQuantizeLinear", [a], outputs=3).producer()
    assert stored is not None
    left = rewriter.dequantized(node, stored.outputs[0], stored.outputs[1], stored.outputs[2])
    right = rewriter.dequantized(node, b, b_scale, b_zero, -1)
    _with_bias(rewriter, node, rewriter.insert(node, "MatMul", [left, right]), bias)


def _with_bias(rewriter: Rewriter, node: ir.Node, product: ir.Value, bias: ir.Value | None) -> None:
    result = product if bias is None else rewriter.insert(node, "Add", [product, bias])
    ended(rewriter, node, product, result)


def _recurrence(rewriter: Rewriter, node: ir.Node) -> None:
    """Its weights are stored the other way round; the states between its steps are quantized as well, which is left out."""
    weights = [operand(node, place) for place in (8, 9, 10, 11)]
    if weights[0] is None or weights[2] is None or any((rank_of(value) or 0) > 1 for value in weights):
        return
    stored = rewriter.insert(node, "DynamicQuantizeLinear", [node.inputs[0]], outputs=3).producer()
    assert stored is not None
    operands: list[ir.Value | None] = [rewriter.dequantized(node, stored.outputs[0], stored.outputs[1], stored.outputs[2])]
    for place, scale, zero in ((1, weights[0], weights[1]), (2, weights[2], weights[3])):
        numbers = operand(node, place)
        assert numbers is not None
        loaded = rewriter.dequantized(node, numbers, scale, zero, axis=0)
        operands.append(rewriter.insert(node, "Transpose", [loaded], {"perm": [0, 2, 1]}))
    made = rewriter.insert(node, "LSTM", [*operands, *node.inputs[3:8]], kept_attributes(node), outputs=3).producer()
    assert made is not None
    for place, value in enumerate(node.outputs):
        if value.name:
            rewriter.store(node, made.outputs[place], output=place)
    rewriter.finish(node, made.outputs[0])


def _packed_product(rewriter: Rewriter, node: ir.Node) -> None:
    """Its weights become one constant of floats: B holds for each column blocks of values, the lowest bits first."""
    packed, scales, zeros, groups = (constant_of(operand(node, place)) for place in (1, 2, 3, 4))
    bits, block, rows, depth = (
        int(node.attributes[name].as_int()) if name in node.attributes else 4 for name in ("bits", "block_size", "N", "K")
    )
    given = [operand(node, place) for place in (3, 4)]
    if (
        packed is None
        or scales is None
        or any(value is not None for value in (given[1], groups))
        or (given[0] is not None and zeros is None)
    ):
        return
    if 8 % bits or scales.dtype.kind != "f":
        return
    blocks = -(-depth // block)
    levels = _unpacked(packed.reshape(rows, -1), bits)[:, : blocks * block].reshape(rows, blocks, block).astype(np.float64)
    offset: Array = np.full((rows, blocks, 1), 2.0 ** (bits - 1))
    if zeros is not None:
        stored = _unpacked(zeros.reshape(rows, -1), bits) if zeros.dtype == np.uint8 else zeros.reshape(rows, -1)
        offset = stored[:, :blocks, None].astype(np.float64)
    weights = ((levels - offset) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :depth].T
    constant = rewriter.constant(f"{node.name}/weights", weights.astype(scales.dtype))
    _with_bias(rewriter, node, rewriter.insert(node, "MatMul", [node.inputs[0], constant]), operand(node, 5))


def _unpacked(packed: Array, bits: int) -> Array:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)).reshape(packed.shape[0], -1)


#: by domain and operator: what puts the form in floats in the place of a node, or leaves the node as it is
EXPANSIONS: Mapping[tuple[str, str], Callable[[Rewriter, ir.Node], None]] = {
    **STATIC,
    ("", "ConvInteger"): _integer_convolution,
    ("", "MatMulInteger"): _integer_product,
    (CONTRIB, "DynamicQuantizeLSTM"): _recurrence,
    (CONTRIB, "DynamicQuantizeMatMul"): _dynamic_product,
    (CONTRIB, "MatMulIntegerToFloat"): _product_to_floats,
    (CONTRIB, "MatMulNBits"): _packed_product,
}
