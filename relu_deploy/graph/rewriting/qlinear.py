"""Write operators on quantized numbers as DequantizeLinear, the operator on floats, and QuantizeLinear.

ONNX Runtime's quantizer and optimizer write QLinearConv, QLinearAdd and the like. The specification defines each of them in real
numbers: the operands dequantized, the operator on them, and its result quantized. Both forms return the same numbers, except where a
result is so near the middle of two levels that the rounding of a product decides. Operators that move stored numbers (MaxPool,
Reshape, Gather and others) are written in the same way, since they keep the order of numbers.

The node on floats keeps the name of the node that it stands for, and the QuantizeLinear keeps the name of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.rewriting.qlinear_dynamic import EXPANSIONS
from relu_deploy.graph.rewriting.qlinear_operators import MOVING
from relu_deploy.graph.rewriting.qlinear_rewriter import Parameters, Rewriter, is_single, results_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["expand_qlinear", "has_qlinear", "parameters_of"]


def has_qlinear(model: ir.Model) -> bool:
    """Return whether a node of `model` computes on quantized numbers."""
    return any(_key(node) in EXPANSIONS for node, _ in iterate_nodes(model))


def expand_qlinear(model: ir.Model, names: Mapping[str, str] | None = None) -> Rewriter:
    """Return a copy of `model` (weights shared) in which floats are computed between DequantizeLinear and QuantizeLinear.

    Args:
        model: The graph. A node that has no such form (scales that are computed, a Softmax over several axes) stays as it is.
        names: By tensor of quantized numbers, the name of the tensor of floats that is quantized to it. A DequantizeLinear whose
            result has this name gives it up.
    """
    copy = model.clone()
    rewriter = Rewriter(copy, dict(names or {}), parameters_of(copy))
    for node in [node for node, _ in iterate_nodes(copy)]:
        expand = EXPANSIONS.get(_key(node))
        if expand is not None:
            expand(rewriter, node)
        elif is_standard(node) and node.op_type in MOVING and str(node.outputs[0].name) in rewriter.parameters:
            _expand_moving(rewriter, node)
    return rewriter


def parameters_of(model: ir.Model) -> dict[str, Parameters]:
    """Return the scale and the zero point of each tensor of quantized numbers that a node computes, by name.

    Those that have a scale for each row or channel are left out.
    """
    found: dict[str, Parameters] = {}
    for node, _ in iterate_nodes(model):
        places = results_of(node) if _key(node) in EXPANSIONS else (1, 2) if node.op_type == "QuantizeLinear" else None
        if places is not None:
            scale, zero = (node.inputs[place] if place < len(node.inputs) else None for place in places)
            if scale is not None and is_single(scale):
                found[str(node.outputs[0].name)] = scale, zero
        elif is_standard(node) and node.op_type in MOVING and node.inputs and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            known = found.get(source) or _read_with(node)
            if known is not None:
                found |= dict.fromkeys((str(value.name) for value in node.outputs[: MOVING[node.op_type]] if value.name), known)
    return found


def _read_with(node: ir.Node) -> Parameters | None:
    """Return the scale and the zero point with which the results of a node that moves stored weights are read."""
    weights = constant_of(node.inputs[0])
    if weights is None or weights.dtype.name not in ("int8", "uint8"):
        return None
    for reader in node.outputs[0].consumers():
        if reader.op_type == "DequantizeLinear" and reader.inputs[1] is not None and is_single(reader.inputs[1]):
            return reader.inputs[1], reader.inputs[2] if len(reader.inputs) > 2 else None
    return None


def _key(node: ir.Node) -> tuple[str, str]:
    return ("" if is_standard(node) else node.domain), node.op_type


def _expand_moving(rewriter: Rewriter, node: ir.Node) -> None:
    """Move floats instead of stored numbers, and quantize them as they were."""
    import onnx_ir as ir

    results = [value for value in node.outputs[: MOVING[node.op_type]] if value.name]
    scale, zero = rewriter.parameters[str(results[0].name)]
    source = node.inputs[0]
    assert source is not None
    if any(value.name for value in node.outputs[MOVING[node.op_type] :]):
        return
    operands: list[ir.Value | None] = [rewriter.dequantized(node, source, scale, zero), *node.inputs[1:]]
    if node.op_type == "Pad":
        # Without a value it is the number 0 that is put around, whatever the zero point is.
        padding = operands[2] if len(operands) > 2 else None
        if padding is None:
            stored = np.uint8 if zero is None or zero.dtype is None else zero.dtype.numpy()
            padding = rewriter.constant(f"{node.name}/padding", np.zeros((), stored))
        operands = [*operands[:2], rewriter.dequantized(node, padding, scale, zero), *operands[3:]]
    made = ir.Node("", node.op_type, operands, list(node.attributes.values()), num_outputs=len(node.outputs))
    made.name = f"{node.name}/floats"
    assert node.graph is not None
    node.graph.insert_before(node, [made])
    for place, value in enumerate(node.outputs):
        if value.name:
            rewriter.store(node, made.outputs[place], output=place)
        else:
            made.outputs[place].name = ""
    rewriter.finish(node, made.outputs[0])
