"""Which precision a graph is written in: since TensorRT 11 the only place where it can be said."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRECISIONS", "node_precisions", "precision_of"]

#: from the most exact to the coarsest; a graph is as exact as its coarsest part
PRECISIONS = ("float64", "float32", "float16", "bfloat16", "float8", "int8")
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
#: operators that runtimes compute in the precision of the DequantizeLinear nodes before them
_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def precision_of(model: ir.Model) -> str:
    """Return the coarsest of `PRECISIONS` that `model` computes in; "float32" when its types are not known."""
    found = set(node_precisions(model).values())
    return max(found, key=PRECISIONS.index, default="float32")


def node_precisions(model: ir.Model) -> dict[str, str]:
    """Return for each node of the top graph, by name, the precision of what it computes; nodes of integers are left out."""
    precisions = {}
    for node in model.graph:
        if node.op_type in _QUANTISERS:
            precisions[str(node.name)] = _stored(node)
            continue
        makers = [value.producer() for value in node.inputs[:2] if value is not None]
        if node.op_type in _COMPUTING and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            precisions[str(node.name)] = _stored(makers[0])  # type: ignore[arg-type]
            continue
        out = node.outputs[0].dtype
        name = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}.get(
            out.name if out else ""
        )
        if name:
            precisions[str(node.name)] = name
    return precisions


def _stored(node: ir.Node) -> str:
    values = (*node.inputs, *node.outputs)
    return (
        "float8"
        if any(value is not None and value.dtype is not None and "FLOAT8" in value.dtype.name for value in values)
        else "int8"
    )
