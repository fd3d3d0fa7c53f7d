"""Count the cost of a graph: floating-point operations, bytes moved, parameters.

    Conv, ConvTranspose   2 * outputs * (inputs per output)      multiply and add count as two
    Gemm, MatMul          2 * rows * columns * depth
    everything else       one operation per output element; copies and shape arithmetic none

`bytes` is what must be moved when every node reads its inputs and writes its outputs once: an upper bound that fusion
lowers. `compulsory` is what no fusion saves: weights, the graph's inputs and its outputs, each once. Varying dimensions count as `batch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Cost", "count_cost"]

FREE = frozenset(
    [
        "Constant",
        "ConstantOfShape",
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Shape",
        "Size",
        "Cast",
        "Concat",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Pad",
        "Dropout",
        "Range",
        "Tile",
    ]
)


@dataclass(frozen=True)
class Cost:
    """flops: operations for one run at `batch`. bytes: moved, unfused. parameters: elements of all initializers.

    compulsory: bytes of weights, inputs and outputs.
    """

    flops: int
    bytes: int
    parameters: int
    batch: int
    unknown: tuple[str, ...]
    """nodes whose shapes could not be inferred, and which therefore count as nothing"""
    compulsory: int = 0


def count_cost(model: ir.Model, batch: int = 1) -> Cost:
    """Return the cost of one run of `model`'s top graph with every varying dimension set to `batch`."""
    flops = moved = 0
    unknown = []
    for node in model.graph:
        if node.op_type in ("Constant", "ConstantOfShape"):
            continue
        outputs = [_shape(value, batch) for value in node.outputs if value.name]
        inputs = [_shape(value, batch) for value in node.inputs if value is not None]
        if any(shape is None for shape in (*outputs, *inputs)):
            unknown.append(str(node.name))
            continue
        flops += _flops(node, batch)
        moved += sum(_nbytes(value, batch) for value in (*node.inputs, *node.outputs) if value is not None and value.name)
    values = [value.const_value for value in model.graph.initializers.values()]
    parameters = sum(int(tensor.size) for tensor in values if tensor is not None)
    ends = sum(_nbytes(value, batch) for value in (*model.graph.inputs, *model.graph.outputs))
    compulsory = ends + sum(int(tensor.nbytes) for tensor in values if tensor is not None)
    return Cost(flops, moved, parameters, batch, tuple(unknown), compulsory)


def _flops(node: ir.Node, batch: int) -> int:
    elements = prod(_shape(node.outputs[0], batch) or ())
    if node.op_type in FREE:
        return 0
    if node.op_type == "Conv":
        return 2 * elements * prod((_shape(node.inputs[1], batch) or ())[1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(_shape(node.inputs[0], batch) or ()) * prod((_shape(node.inputs[1], batch) or ())[1:])
    if node.op_type in ("Gemm", "MatMul"):
        left = _shape(node.inputs[0], batch) or (1,)
        transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int() == 1
        return 2 * elements * (left[0] if transposed else left[-1])
    if node.op_type in ("MaxPool", "AveragePool") and "kernel_shape" in node.attributes:
        return int(elements * prod(node.attributes["kernel_shape"].as_ints()))
    if node.op_type.startswith("Reduce") or node.op_type.startswith("Global"):
        return prod(_shape(node.inputs[0], batch) or ())
    return elements


def _shape(value: ir.Value | None, batch: int) -> tuple[int, ...] | None:
    if value is None or value.shape is None:
        return None if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())
    return tuple(dim if isinstance(dim, int) else batch for dim in value.shape)


def _nbytes(value: ir.Value, batch: int) -> int:
    shape = _shape(value, batch)
    return 0 if shape is None or value.dtype is None else int(prod(shape) * value.dtype.itemsize)
