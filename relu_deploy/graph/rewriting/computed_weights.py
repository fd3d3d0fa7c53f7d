"""Weights that a graph transposes or reshapes before a layer reads them, stored as that layer reads them.

A language model whose last layer shares the table of its embedding transposes that table in the graph: what converts weights to 8
bits would take the layer for a product of two activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_computed_weights"]

#: Layers, whose second operand is their weights.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Most operators between a weight and its layer.
MOST_STEPS = 8


def fold_computed_weights(model: ir.Model) -> ir.Model:
    """Return a copy of `model` in which layers read weights that were transposed or reshaped as constants; other weights are shared.

    The weights themselves stay where something else reads them.
    """
    import onnx_ir as ir

    folded = model.clone()
    for node in list(folded.graph):
        weights = node.inputs[1] if node.op_type in LAYERS and is_standard(node) and len(node.inputs) > 1 else None
        if weights is None or constant_of(weights) is not None or (array := _folded(weights, MOST_STEPS)) is None:
            continue
        name = f"{weights.name}/folded"
        if name not in folded.graph.initializers:
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            folded.graph.register_initializer(
                ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
            )
        node.replace_input_with(1, folded.graph.initializers[name])
        _remove_unread(folded, weights)
    return folded


def _folded(value: ir.Value | None, steps: int) -> Array | None:
    """Return what `value` always is, None where it is computed by other operators or fed."""
    if (known := constant_of(value)) is not None or value is None or not steps:
        return known
    node = value.producer()
    change = None if node is None or not is_standard(node) else CHANGES.get(node.op_type)
    if change is None or node is None or not node.inputs:
        return None
    operand, *others = node.inputs
    source, given = _folded(operand, steps - 1), [constant_of(each) for each in others]
    if source is None or any(each is None for each in given):
        return None
    try:
        return change(node, source, given[0] if given else None)
    except (ValueError, IndexError):
        return None  # the graph does not fit together here: what runs it says so


def _transpose(node: ir.Node, array: Array, _: Array | None) -> Array:
    order = node.attributes.get_ints("perm")
    return array.transpose(order)


def _reshape(node: ir.Node, array: Array, sizes: Array | None) -> Array | None:
    if sizes is None or node.attributes.get_int("allowzero"):
        return None
    return array.reshape([array.shape[axis] if size == 0 else int(size) for axis, size in enumerate(sizes)])


def _squeeze(node: ir.Node, array: Array, axes: Array | None) -> Array:
    given = node.attributes.get_ints("axes") if axes is None else axes
    return np.squeeze(array, None if given is None else tuple(int(axis) for axis in given))


def _unsqueeze(node: ir.Node, array: Array, axes: Array | None) -> Array:
    given = node.attributes.get_ints("axes") if axes is None else axes
    return np.expand_dims(array, tuple(int(axis) for axis in ([] if given is None else given)))


CHANGES: Mapping[str, Callable[[ir.Node, Array, Array | None], Array | None]] = {
    "Identity": lambda _, array, __: array,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _remove_unread(model: ir.Model, value: ir.Value) -> None:
    """Remove the nodes that only computed `value`, which nothing reads any more."""
    node = value.producer()
    while node is not None and not any(list(each.uses()) or each in model.graph.outputs for each in node.outputs):
        source = node.inputs[0] if node.inputs else None
        model.graph.remove(node, safe=True)
        node = None if source is None else source.producer()
