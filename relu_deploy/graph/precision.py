"""Determine the precision that a graph computes in. Since TensorRT 11 the graph is the only place that specifies it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from relu_deploy.graph.bodies import iterate_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "PRECISIONS",
    "Quantized",
    "clamped_tensors",
    "has_packed_weights",
    "is_quantizer",
    "node_precisions",
    "precision_of",
    "quantized_parts",
    "quantized_relu",
]

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


def is_quantizer(operator: str) -> bool:
    """Return whether nodes of `operator` quantize, dequantize, or compute in 8 bits."""
    return operator in _QUANTIZERS or operator.startswith("QLinear")


def node_precisions(model: ir.Model) -> dict[str, str]:
    """Return for each node of the top graph, by name, the precision of what it computes; nodes of integers are left out."""
    precisions = {}
    for node in model.graph:
        if is_quantizer(node.op_type):
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


class Quantized(NamedTuple):
    """How an int8 graph quantizes, beside 8 bits at its convolutions, products and sums.

    Attributes:
        operators: Further operators whose operands it quantizes.
        weight_levels: Levels of its coarsest weights on either side of 0: 127 of 8 bits, 7 of 4.
    """

    operators: tuple[str, ...] = ()
    weight_levels: int = 127


#: a graph of 8-bit convolutions, products and sums
EIGHT_BITS = Quantized()


def quantized_parts(model: ir.Model) -> Quantized:
    """Return how `model` quantizes by operators of their own (LSTM by DynamicQuantizeLSTM), and the levels of its weights."""
    nodes = [node for node, _ in iterate_nodes(model)]
    operators = {"LSTM" for node in nodes if node.op_type == "DynamicQuantizeLSTM"}
    operators |= {"MatMulNBits" for node in nodes if node.op_type == "MatMulNBits" and _accuracy_of(node) == "int8"}
    bits = min([bits for node in nodes if (bits := _packed_bits(node))], default=8)
    return Quantized(tuple(sorted(operators)), max(1, 2 ** (bits - 1) - 1))


def has_packed_weights(model: ir.Model) -> bool:
    """Return whether a node of `model` reads weights of a few bits that are packed."""
    return any(_packed_bits(node) for node, _ in iterate_nodes(model))


def _packed_bits(node: ir.Node) -> int:
    """Return the bits of the packed weights that `node` reads, 0 where it reads none."""
    if node.op_type == "MatMulNBits":
        return int(node.attributes["bits"].as_int()) if "bits" in node.attributes else 4
    stored = node.inputs[0] if node.op_type == "DequantizeLinear" and node.inputs else None
    name = "" if stored is None or stored.const_value is None else stored.const_value.dtype.name
    return int(name[-1]) if name in ("INT2", "UINT2", "INT4", "UINT4") else 0


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
