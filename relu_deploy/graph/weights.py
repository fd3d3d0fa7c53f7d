"""Serialize a graph without its large weights, for the C++ functions of onnx that read shapes and operators only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph.loading.traversal import bodies_of
from relu_deploy.graph.shared_models import shared_by

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["detach_weights", "to_proto_without_weights", "to_whole_proto"]

#: weights above this many bytes are left out; the numbers that shapes depend on (scales, pads, axes) are smaller
LARGEST_KEPT = 1024
#: operators of ai.onnx.ml that keep their weights in attributes, and entries of such a table; those of longer ones are left out
TABLES, LONGEST_TABLE = frozenset(["SVMClassifier", "SVMRegressor", "TreeEnsembleClassifier", "TreeEnsembleRegressor"]), 1024


def detach_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn the large weights of `model` into inputs without a value, in place.

    Returns:
        The values by name.
    """
    inputs = set(model.graph.inputs)
    detached = {}
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None or value.const_value.nbytes <= LARGEST_KEPT:
            continue
        detached[name] = value.const_value
        value.dtype, value.shape = value.const_value.dtype, value.const_value.shape  # type: ignore[assignment]
        del model.graph.initializers[name]
        if value not in inputs:
            model.graph.inputs.append(value)
    return detached


def to_proto_without_weights(model: ir.Model) -> onnx.ModelProto:
    """Return `model` serialized, with each large weight as an input of its type and shape."""
    shared = shared_by(model)
    if shared is None:
        return _serialized(model)
    if shared.light is None:
        shared.light = _serialized(model)
    copy = type(shared.light)()
    copy.CopyFrom(shared.light)
    return copy


def to_whole_proto(model: ir.Model) -> onnx.ModelProto:
    """Return `model` serialized, weights included."""
    import onnx_ir as ir

    # That of a shared model is serialized once.
    return ir.to_proto(model) if _has_large_weights(model) else to_proto_without_weights(model)


def _has_large_weights(model: ir.Model) -> bool:
    constants = (value.const_value for value in model.graph.initializers.values())
    return any(constant is not None and constant.nbytes > LARGEST_KEPT for constant in constants)


@without_collecting()
def _serialized(model: ir.Model) -> onnx.ModelProto:
    import onnx_ir as ir

    light = model
    # A copy takes longer than all the rest where there are many nodes.
    if _has_large_weights(model):
        light = model.clone()
        detach_weights(light)
    proto = ir.to_proto(light)
    _shorten_tables(proto)
    return proto


def _shorten_tables(proto: onnx.ModelProto) -> None:
    """Leave of the long tables of each operator of `TABLES` the first entry, in place: shapes depend on the labels alone."""
    waiting = list(proto.graph.node)
    while waiting:
        node = waiting.pop()
        for body in bodies_of(node):
            waiting += body.node
        for attribute in node.attribute if node.op_type in TABLES else ():
            for numbers in (attribute.ints, attribute.floats, attribute.strings):
                if len(numbers) > LONGEST_TABLE and "label" not in attribute.name:
                    del numbers[1:]
