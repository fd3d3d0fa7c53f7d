"""Read and rewrite the QuantizeLinear and DequantizeLinear nodes of a graph that was quantized where it was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "constant_input",
    "dequantize_constant",
    "fold_constant_quantizers",
    "insert_pair",
    "new_constant",
    "readers_of",
    "scale_of",
    "set_zero_point",
    "zero_point_of",
]


def readers_of(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`, each once."""
    return list(dict.fromkeys(value.consumers()))


def constant_input(node: ir.Node, position: int) -> Array | None:
    """Return the constant that `node` reads there, None where it is computed or missing."""
    return constant_of(node.inputs[position]) if position < len(node.inputs) else None


def scale_of(node: ir.Node) -> Array | None:
    """Return the constant scale of a QuantizeLinear or DequantizeLinear, None where it is computed."""
    return constant_input(node, 1)


def zero_point_of(node: ir.Node) -> Array | None:
    """Return the zero point of a QuantizeLinear or DequantizeLinear with the dtype of the stored numbers; None where unknown."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return constant_input(node, 2)
    stored = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if stored is None or stored.dtype is None:
        return np.zeros((), np.uint8) if node.op_type == "QuantizeLinear" else None
    return np.zeros((), stored.dtype.numpy())


def set_zero_point(model: ir.Model, node: ir.Node, zero_point: Array) -> None:
    """Give a QuantizeLinear or DequantizeLinear another zero point, whose dtype is that of the stored numbers."""
    import onnx_ir as ir

    value = new_constant(model, f"{node.name}/zero_point", zero_point)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
    node.attributes.pop("output_dtype", None)
    stored = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    stored.type = ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))  # type: ignore[union-attr]


def new_constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Return a new initializer, called `name` unless another tensor is."""
    import onnx_ir as ir

    taken = set(model.graph.initializers) | {str(value.name) for node in model.graph for value in node.outputs}
    taken |= {str(value.name) for value in model.graph.inputs}
    if name in taken:
        name = next(other for count in range(len(taken) + 1) if (other := f"{name}_{count}") not in taken)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def fold_constant_quantizers(model: ir.Model) -> list[str]:
    """Replace each QuantizeLinear of a constant, and a Clip behind it, by the stored numbers, in place.

    Args:
        model: Its constants are initializers.

    Returns:
        The names of the nodes that were removed.
    """
    folded = []
    for node in list(model.graph):
        array = constant_input(node, 0)
        if array is None or not is_standard(node):
            continue
        if node.op_type == "QuantizeLinear":
            stored = _quantized(node, array)
        elif node.op_type == "Clip" and array.dtype.kind in "iu":
            stored = _clipped(node, array)
        else:
            continue
        if stored is None or node.outputs[0].is_graph_output():
            continue
        node.outputs[0].replace_all_uses_with(new_constant(model, str(node.outputs[0].name), stored))
        folded.append(str(node.name))
        _remove(model, node)
    return folded


def _quantized(node: ir.Node, array: Array) -> Array | None:
    scale, zero = scale_of(node), zero_point_of(node)
    if scale is None or zero is None or zero.dtype.kind not in "iu" or _attribute(node, "block_size", 0):
        return None
    axis = _attribute(node, "axis", 1)
    limits = np.iinfo(zero.dtype)
    steps = np.rint(array / _along(scale, axis, array.ndim)) + _along(zero, axis, array.ndim).astype(np.float64)
    return np.clip(steps, limits.min, limits.max).astype(zero.dtype)


def _clipped(node: ir.Node, array: Array) -> Array | None:
    bounds = [constant_input(node, position) for position in (1, 2)]
    for position, bound in enumerate(bounds, 1):
        if bound is None and position < len(node.inputs) and node.inputs[position] is not None:
            return None
    low, high = bounds
    limits = np.iinfo(array.dtype)
    return np.clip(array, limits.min if low is None else low, limits.max if high is None else high).astype(array.dtype)


def dequantize_constant(model: ir.Model, node: ir.Node) -> bool:
    """Replace a DequantizeLinear of a constant by the float32 numbers, in place. Return whether that was possible."""
    stored, scale, zero = constant_input(node, 0), scale_of(node), zero_point_of(node)
    value = node.outputs[0]
    if stored is None or scale is None or zero is None or _attribute(node, "block_size", 0) or value.is_graph_output():
        return False
    axis = _attribute(node, "axis", 1)
    wide = stored.astype(np.int64) - _along(zero, axis, stored.ndim).astype(np.int64)
    # Float32 arithmetic, as the operator is defined.
    numbers = wide.astype(np.float32) * _along(scale, axis, stored.ndim).astype(np.float32)
    value.replace_all_uses_with(new_constant(model, f"{value.name}/float", numbers))
    _remove(model, node)
    return True


def insert_pair(model: ir.Model, value: ir.Value, quantizer: ir.Node) -> None:
    """Put a Q/DQ pair behind `value` with the scale and zero point of `quantizer`, and let every reader read it."""
    import onnx_ir as ir

    users = list(value.uses())
    parameters = [each for each in quantizer.inputs[1:] if each is not None]
    store = ir.node("QuantizeLinear", [value, *parameters], name=f"{value.name}/QuantizeLinear")
    load = ir.node("DequantizeLinear", [store.outputs[0], *parameters], name=f"{value.name}/DequantizeLinear")
    store.outputs[0].name, load.outputs[0].name = f"{value.name}/quantized", f"{value.name}/dequantized"
    store.outputs[0].type, store.outputs[0].shape = quantizer.outputs[0].type, value.shape
    load.outputs[0].type, load.outputs[0].shape = value.type, value.shape
    maker = value.producer()
    assert maker is not None
    model.graph.insert_after(maker, [store, load])
    for node, position in users:
        node.replace_input_with(position, load.outputs[0])


def _remove(model: ir.Model, node: ir.Node) -> None:
    """Remove a node that nothing reads, with the constants that only it read."""
    constants = [value for value in node.inputs if value is not None and value.is_initializer()]
    model.graph.remove(node, safe=True)
    for value in constants:
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            model.graph.initializers.pop(str(value.name), None)


def _along(array: Array, axis: int, rank: int) -> Array:
    """Return `array` in a shape that broadcasts along `axis`; of one number, a scalar."""
    if array.size == 1:
        return array.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value
