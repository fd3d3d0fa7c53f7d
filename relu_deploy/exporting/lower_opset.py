"""Writing an exported graph at an operator set older than the oldest one that torch's exporter writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.exporting.older_operators import first_version, write_older_operators
from relu_deploy.graph import name_nodes
from relu_deploy.graph.domains import is_standard

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["LOWEST", "LOWEST_OF_TORCH", "lower_opset"]

#: Oldest operator set to write: before 13, more operators have their axes as attributes.
LOWEST, LOWEST_OF_TORCH = 13, 18
#: The first operator set whose Shape takes a part of the dimensions.
RANGED_SHAPES = 15
#: The IR version of ONNX 1.13, which runtimes that stop at opset 17 read.
OLD_IR_VERSION = 8


def lower_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return `model` at an older operator set, with its node names, metadata and dimensions' names.

    Raises:
        InputError: If an operator cannot be written at that operator set.
    """
    import onnx_ir as ir
    from onnx import ModelProto, numpy_helper, version_converter

    if opset < LOWEST:
        raise InputError(f"graphs cannot be written at opset {opset}", f"export with --opset {LOWEST} or later")
    write_older_operators(model, opset)
    proto = ir.to_proto(model)
    hint = f"export it with --opset {LOWEST_OF_TORCH} or later"
    _refuse_newer(model, opset)
    try:
        # It writes nothing older than 15 for many operators.
        lowered = version_converter.convert_version(proto, max(opset, 15))
    except Exception as error:  # the converter raises RuntimeError and its own ConvertError
        reason = str(error).strip().splitlines()[0].rpartition("Assertion `false` failed: ")[2]
        raise InputError(f"this model cannot be written at opset {opset}: {reason}", hint) from error
    for entry in lowered.opset_import:
        if is_standard(entry):
            entry.version = opset
    if opset < RANGED_SHAPES:
        _slice_shapes(lowered.graph)
    zeros = {
        each.name for each in lowered.graph.initializer if each.data_type == each.INT64 and not numpy_helper.to_array(each).all()
    }
    if refused := [node for node in lowered.graph.node if not _fits(node, opset, zeros)]:
        reason = f"the {refused[0].op_type} {refused[0].name!r} has attributes or operands that this operator set does not have"
        raise InputError(f"this model cannot be written at opset {opset}: {reason}", hint)
    # The converter drops names and metadata, and renames dimensions.
    known = {output: node for node in proto.graph.node for output in node.output}
    for node in lowered.graph.node:
        before = next((known[output] for output in node.output if output in known), None)
        if before is not None and before.op_type == node.op_type:
            node.name = before.name
            del node.metadata_props[:]
            node.metadata_props.extend(before.metadata_props)
    for side in ("input", "output"):
        for value, original in zip(getattr(lowered.graph, side), getattr(proto.graph, side), strict=False):
            value.CopyFrom(original)
    del lowered.graph.value_info[:]
    lowered.ir_version = min(lowered.ir_version, OLD_IR_VERSION)
    converted = ir.from_proto(ModelProto.FromString(lowered.SerializeToString()))
    name_nodes(converted)
    return converted


def _refuse_newer(model: ir.Model, opset: int) -> None:
    """Raise InputError for the first operator that a later operator set than `opset` introduced."""
    for node in model.graph.all_nodes():
        since = first_version(node.op_type) if is_standard(node) else None
        if since is not None and since > opset:
            raise InputError(
                f"this model cannot be written at opset {opset}: the node {node.name!r} is a {node.op_type}, "
                f"an operator that opset {since} introduced",
                f"export it with --opset {since} or later",
            )


def _slice_shapes(graph: onnx.GraphProto) -> None:
    """Write each Shape of a part of the dimensions as a Shape of all and a Slice, in place."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in graph.node:
        nodes.append(node)
        limits = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "Shape" or not is_standard(node) or not limits:
            continue
        result = node.output[0]
        whole = f"{result}/whole"
        bounds = {"start": limits.get("start", 0), "end": limits.get("end", np.iinfo(np.int64).max), "axes": 0}
        graph.initializer.extend(
            numpy_helper.from_array(np.array([value], np.int64), f"{result}/{name}") for name, value in bounds.items()
        )
        del node.attribute[:]
        node.output[0] = whole
        operands = [whole, *(f"{result}/{name}" for name in bounds)]
        nodes.append(helper.make_node("Slice", operands, [result], f"{node.name or result}/slice"))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _fits(node: onnx.NodeProto, opset: int, zeros: Collection[str]) -> bool:
    """Return whether the operator set has this operator with these attributes, after dropping those that change nothing.

    Args:
        node: Changed in place.
        opset: The operator set.
        zeros: Names of the constants that hold a zero.
    """
    from onnx import defs

    if not is_standard(node):
        return True
    try:
        old, new = (defs.get_schema(node.op_type, version, "") for version in (opset, LOWEST_OF_TORCH))
    except defs.SchemaError:
        return False
    for attribute in [each for each in node.attribute if each.name not in old.attributes]:
        known = new.attributes.get(attribute.name)
        # `allowzero` only matters for a shape with a zero, and so for an empty tensor.
        harmless = attribute.name == "allowzero" and node.input[1] not in zeros
        if known is None or not (harmless or known.default_value == attribute):
            return False
        node.attribute.remove(attribute)
    return len(node.input) <= old.max_input and len(node.output) <= old.max_output
