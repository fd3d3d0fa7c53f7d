"""Determine the precision that a graph computes in. Since TensorRT 11 the graph is the only place that specifies it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.bodies import iterate_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRECISIONS", "clamped_tensors", "node_precisions", "precision_of", "quantized_operators", "quantized_relu"]

#: from the most exact to the coarsest; a graph is as exact as its coarsest part
PRECISIONS = ("float64", "float32", "float16", "bfloat16", "float8", "int8")
_QUANTIZERS = frozenset(["QuantizeLinear", "DequantizeLinear", "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"])
#: what ONNX Runtime's quantizer and optimizer write instead, beside the operators whose names start with QLinear
_QUANTIZERS |= {
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
}
#: precisions that an attribute of MatMulNBits allows its operand to be rounded to
_ACCURACY_LEVELS = {2: "float16", 3: "bfloat16", 4: "int8"}
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
        if node.op_type in _QUANTIZERS or node.op_type.startswith("QLinear"):
            precisions[str(node.name)] = _stored(node)
            continue
        if node.op_type == "MatMulNBits" and _accuracy_of(node):
            precisions[str(node.name)] = _accuracy_of(node)
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


def quantized_operators(model: ir.Model) -> tuple[str, ...]:
    """Return the operators on floats whose operands `model` quantizes by an operator of their own: LSTM by DynamicQuantizeLSTM."""
    found = {"LSTM" for node, _ in iterate_nodes(model) if node.op_type == "DynamicQuantizeLSTM"}
    found |= {"MatMulNBits" for node, _ in iterate_nodes(model) if node.op_type == "MatMulNBits" and _accuracy_of(node) == "int8"}
    return tuple(sorted(found))


def _accuracy_of(node: ir.Node) -> str:
    """Return the precision that a MatMulNBits may round its operand to, "" where it may not."""
    level = node.attributes.get("accuracy_level")
    return "" if level is None else _ACCURACY_LEVELS.get(level.as_int(), "")


def quantized_relu(node: ir.Node) -> float | None:
    """Return the largest number that `node` keeps, where it is a QuantizeLinear that is a Relu as well, else None.

    Its zero point is then the smallest number of its type: all that is negative becomes it. Quantizers leave the Relu
    before such a node out, and the Conv's output keeps the Relu's name.
    """
    if node.op_type != "QuantizeLinear":
        return None
    zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    scale = node.inputs[1].const_value if node.inputs[1] is not None else None
    # The zero point has the type of the result; without one it is 0 of an unsigned byte.
    points = np.zeros(1, np.uint8) if zero is None else zero.numpy()
    if scale is None or not np.issubdtype(points.dtype, np.integer) or np.any(points != np.iinfo(points.dtype).min):
        return None
    limits = np.iinfo(points.dtype)
    return float(np.max(scale.numpy())) * float(limits.max - limits.min)


def clamped_tensors(model: ir.Model) -> dict[str, str]:
    """Return for each tensor that nothing but a `quantized_relu` reads the tensor in which it comes back as a float."""
    clamped = {}
    for node in model.graph:
        for value in node.outputs:
            readers = list(value.consumers())
            if readers and not value.is_graph_output() and all(quantized_relu(reader) is not None for reader in readers):
                back = [
                    after for reader in readers for after in reader.outputs[0].consumers() if after.op_type == "DequantizeLinear"
                ]
                if back:
                    clamped[str(value.name)] = str(back[0].outputs[0].name)
    return clamped


def _stored(node: ir.Node) -> str:
    values = (*node.inputs, *node.outputs)
    return (
        "float8"
        if any(value is not None and value.dtype is not None and "FLOAT8" in value.dtype.name for value in values)
        else "int8"
    )
