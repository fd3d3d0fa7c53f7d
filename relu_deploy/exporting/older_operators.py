"""Operators that an older operator set does not have, written as several that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.exporting.node_parts import NodeParts
from relu_deploy.graph.domains import is_standard

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["first_version", "write_older_operators"]


def first_version(operator: str) -> int | None:
    """Return the first operator set that has `operator`, None if there is none."""
    from onnx import defs

    since = None
    while (schema := _schema(defs, operator, since)) is not None:
        since = int(schema.since_version)
    return since


def _schema(defs: Any, operator: str, before: int | None) -> Any:
    """Return the definition of `operator`, the last one or the last before an operator set; None if there is none."""
    try:
        return defs.get_schema(operator, "") if before is None else defs.get_schema(operator, before - 1, "")
    except defs.SchemaError:
        return None


def write_older_operators(model: ir.Model, opset: int) -> None:
    """Replace the operators that `opset` does not have, in place, where several others compute the same."""
    for node in list(model.graph.all_nodes()):
        decompose = DECOMPOSITIONS.get(node.op_type)
        if decompose is not None and is_standard(node) and (first_version(node.op_type) or 0) > opset:
            parts = NodeParts(node)
            result = decompose(parts, node)
            if result is not None:
                parts.replace(result)


def _hard_swish(parts: NodeParts, node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    assert x is not None
    return parts.add("Mul", x, parts.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _mish(parts: NodeParts, node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    assert x is not None
    return parts.add("Mul", x, parts.add("Tanh", parts.add("Softplus", x)))


def _layer_normalization(parts: NodeParts, node: ir.Node) -> ir.Value | None:
    """The mean is subtracted before the variance is computed: the mean of squares less the square of the mean would cancel."""
    import onnx_ir as ir

    x, scale, bias = (*node.inputs, None)[:3]
    axis = _attribute(node, "axis", -1)
    if x is None or scale is None or any(value.name and value.uses() for value in node.outputs[1:]):
        return None
    if axis >= 0:
        if x.shape is None:
            return None
        axis -= len(x.shape)
    half = x.dtype if x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) and _attribute(node, "stash_type", 1) == 1 else None
    wide = x if half is None else parts.add("Cast", x, to=int(ir.DataType.FLOAT))
    number = np.float64 if x.dtype == ir.DataType.DOUBLE else np.float32
    axes = parts.constant(np.arange(axis, 0))
    centered = parts.add("Sub", wide, parts.add("ReduceMean", wide, axes, keepdims=1))
    variance = parts.add("ReduceMean", parts.add("Mul", centered, centered), axes, keepdims=1)
    deviation = parts.add("Sqrt", parts.add("Add", variance, parts.constant(number(_attribute(node, "epsilon", 1e-5)))))
    y = parts.add("Div", centered, deviation)
    y = y if half is None else parts.add("Cast", y, to=int(half))
    y = parts.add("Mul", y, scale)
    return y if bias is None else parts.add("Add", y, bias)


def _trilu(parts: NodeParts, node: ir.Node) -> ir.Value | None:
    """An element is kept where its column less its row is at most k, or at least k for the upper part."""
    x, k = (*node.inputs, None)[:2]
    if x is None or x.dtype is None:
        return None
    shape, zero, one = parts.add("Shape", x), parts.constant(np.int64(0)), parts.constant(np.int64(1))
    rows, columns = (
        parts.add("Range", zero, parts.add("Gather", shape, parts.constant(np.int64(axis)), axis=0), one) for axis in (-2, -1)
    )
    ahead = parts.add("Sub", columns, parts.add("Unsqueeze", rows, parts.constant(np.array([1]))))
    comparison = "GreaterOrEqual" if _attribute(node, "upper", 1) else "LessOrEqual"
    kept = parts.add(comparison, ahead, zero if k is None else k)
    return parts.add("Where", kept, x, parts.constant(np.zeros((), x.dtype.numpy())))


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


DECOMPOSITIONS: Mapping[str, Callable[[NodeParts, ir.Node], ir.Value | None]] = {
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "Trilu": _trilu,
}
