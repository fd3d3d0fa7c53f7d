"""Raise the operator set of a graph without changing what it computes.

The work is done by `onnx.version_converter`. Three things it does not do are done here: it drops the metadata of every
node and tensor (among it the PyTorch module a node came from) and the names of operators that it replaces; it needs the
weights inside the message, which protobuf limits to 2 GiB; and it silently changes the meaning of a few operators
(found by running each operator before and after):

    Upsample, Resize-10   sample at x / scale, later ones at (x + 0.5) / scale - 0.5: the old rule is written out
    Resize-11, -12        `tf_half_pixel_for_nn` does not exist any more: half_pixel with another rounding is the same
    Hardmax before 13     works on all axes from `axis` on, later ones on `axis` alone: refused unless it is the last
    GroupNormalization    before 21 has a scale for each group, later ones for each channel: refused
    Scan-8                has a batch axis: refused
    Dropout before 12     has a mask of zeros, later ones have a mask of ones: refused where something reads it

Operator sets before 7 are refused: no current runtime computes them, so a conversion cannot be checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of, shape_of
from relu_deploy.graph.model import forget_unsupported_types, name_nodes, opset_of
from relu_deploy.graph.relus import TORCH_NODE_KEY
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.graph.weights import detach_weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["raise_opset"]

OLDEST = 7
#: `nearest_mode` under tf_half_pixel_for_nn → the one under half_pixel that picks the same pixel: floor(v + 0.5) is v rounded
#: with halves going up, and v + 0.5 rounded with halves going down is v rounded up
NEAREST_OF_TF = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}


def raise_opset(model: ir.Model, least: int) -> ir.Model:
    """Return `model` with operators of the default domain's version `least` or later; `model` itself where they are already.

    Inputs, outputs, tensor names, node names and metadata stay; what one node becomes several of is named after it.
    Weights are shared with `model`. Raises InputError naming an operator that cannot be converted.
    """
    import onnx_ir as ir
    from onnx import helper, version_converter
    from onnx_ir.passes.common import InlinePass

    was = opset_of(model)
    if was == 0 or was >= least:
        return model
    source = model.clone()
    if source.functions:
        InlinePass()(source)
    resizes = _prepare(source, was, least)
    # Before version 4 of the file format every weight had to be an input as well.
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", least)], ignore_unknown=True)
    source.ir_version = max(model.ir_version or 0, needed)
    weights = detach_weights(source)
    proto = _typed(ir.to_proto(source))
    try:
        converted = version_converter.convert_version(proto, least)
        forget_unsupported_types(converted.graph)
        raised = ir.from_proto(converted)
    except Exception as error:  # an assertion of the C++ code, or whatever shape inference says
        raise _refused(_culprit(proto, least), was, least, _reason(error)) from error
    for node in _nodes(raised):
        if node.op_type == "Resize" and node.outputs[0].name in resizes:
            _set_strings(node, resizes[str(node.outputs[0].name)])
    _attach_weights(raised, weights, {str(value.name) for value in model.graph.inputs})
    _carry_over(source, raised)
    name_nodes(raised)
    infer_shapes(raised)
    return raised


def _prepare(model: ir.Model, was: int, least: int) -> dict[str, dict[str, str]]:
    """Return the attributes that each Resize of the new graph must get, by its output, to stay what it was.

    Masks that nothing reads are taken from `model`, in place: their type is another one later. Raises InputError for an
    operator whose meaning the converter would change.
    """
    if was < OLDEST:
        raise InputError(
            f"the graph uses opset {was}; before opset {OLDEST} operators mean something else and no runtime computes them",
            "convert it where it was made, to opset 13 or later",
        )
    resizes = {}
    for node in _nodes(model):
        called = f"{node.op_type} {node.name!r}"
        if not is_standard(node):
            continue
        if node.op_type == "Scan" and was == 8:
            raise _refused(called, was, least, "it has a batch axis, which later ones do not have")
        if node.op_type == "GroupNormalization" and was < 21 <= least:
            raise _refused(called, was, least, "its scale has a number for each group, later ones one for each channel")
        if node.op_type == "Dropout" and was < 12 <= least and len(node.outputs) > 1:
            if node.outputs[1].uses() or node.outputs[1].is_graph_output():
                raise _refused(called, was, least, "its mask is read, which in inference became another one")
            node.resize_outputs(1)
        if node.op_type == "Hardmax" and was < 13 <= least and not _is_last_axis(node):
            raise _refused(called, was, least, "it works on several axes together")
        if node.op_type in ("Resize", "Upsample") and was < 13 and least >= (11 if was < 11 else 13):
            resizes[str(node.outputs[0].name)] = _resize_attributes(node, called, was, least)
    return resizes


def _is_last_axis(node: ir.Node) -> bool:
    axis, shape = _attribute(node, "axis", 1), shape_of(node.inputs[0]) if node.inputs[0] is not None else None
    return axis == -1 or (shape is not None and all(size == 1 for size in shape[axis % len(shape) + 1 :]))


def _resize_attributes(node: ir.Node, called: str, was: int, least: int) -> dict[str, str]:
    if was >= 11:
        if _attribute(node, "coordinate_transformation_mode", "") != "tf_half_pixel_for_nn":
            return {}
        nearest = NEAREST_OF_TF.get(_attribute(node, "nearest_mode", "round_prefer_floor"))
        if nearest is None or _attribute(node, "mode", "nearest") != "nearest":
            raise _refused(called, was, least, "its tf_half_pixel_for_nn has no counterpart with this rounding")
        return {"coordinate_transformation_mode": "half_pixel", "nearest_mode": nearest}
    rule = {"coordinate_transformation_mode": "asymmetric"}
    if _attribute(node, "mode", "nearest") != "nearest":
        return rule
    scales = _scales(node)
    if scales is None or (np.any(scales < 1) and np.any(scales > 1)):
        which = "are computed while it runs" if scales is None else "enlarge one axis and shrink another"
        raise _refused(called, was, least, f"its scales {which}, and its rounding depends on them")
    return rule | {"nearest_mode": "ceil" if np.any(scales < 1) else "floor"}


def _scales(node: ir.Node) -> Any:
    """Return the scales of an Upsample or Resize before opset 11, None when they are only known at run time."""
    given = _attribute(node, "scales", None) if len(node.inputs) < 2 else constant_of(node.inputs[1])
    if given is not None:
        return np.asarray(given, np.float64)
    before, after = (None if value is None else shape_of(value) for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or len(before) != len(after):
        return None
    ratios = []
    for old, new in zip(before, after, strict=True):
        if isinstance(old, int) and isinstance(new, int):
            ratios.append(new / old)
        elif old is not None and old == new:
            ratios.append(1.0)
        else:
            return None
    return np.asarray(ratios)


# ---------------------------------------------------------------- through the converter


def _attach_weights(model: ir.Model, detached: Mapping[str, ir.TensorProtocol], inputs: Collection[str]) -> None:
    """Undo `detach_weights` on the converted `model`, in place. inputs: the names of what was an input before."""
    for value in list(model.graph.inputs):
        if (name := str(value.name)) in detached:
            value.const_value = detached[name]
            model.graph.register_initializer(value)
            if name not in inputs:
                model.graph.inputs.remove(value)


def _typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return `proto` without the notes on tensors whose type is unknown, which the converter cannot read."""
    known = [value for value in proto.graph.value_info if value.type.WhichOneof("value")]
    if len(known) < len(proto.graph.value_info):
        kept = [type(value).FromString(value.SerializeToString()) for value in known]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
    return proto


def _culprit(proto: onnx.ModelProto, least: int) -> str:
    """Return type and name of the first node that cannot be converted on its own, "the graph" when each can."""
    from onnx import helper, version_converter

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    types = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    for node in graph.node:
        inputs = [types[name] for name in dict.fromkeys(node.input) if name in types and name not in weights]
        outputs = [types.get(name) or helper.make_tensor_value_info(name, 1, None) for name in node.output if name]
        constants = [weights[name] for name in dict.fromkeys(node.input) if name in weights]
        alone = helper.make_graph([node], "alone", inputs, outputs, constants)
        try:
            version_converter.convert_version(
                helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version), least
            )
        except Exception:
            return f"{node.op_type} {node.name!r}"
    return "the graph"


def _reason(error: Exception) -> str:
    """Return what the converter says, without the place in its source that says it."""
    reason = str(error).strip().splitlines()[0].rpartition("failed: ")[2]
    return "ONNX knows no such operator" if "has no registered schema" in reason else reason


def _refused(what: str, was: int, least: int, why: str) -> InputError:
    return InputError(
        f"{what} cannot be converted from opset {was} to {least}: {why}", f"export the model again, with opset {least} or later"
    )


# ---------------------------------------------------------------- what the converter forgets


def _carry_over(source: ir.Model, raised: ir.Model) -> None:
    """Give nodes, tensors and graph of `raised` the names, metadata, types and shapes they had in `source`."""
    raised.metadata_props.update(source.metadata_props)
    raised.graph.metadata_props.update(source.graph.metadata_props)
    raised.producer_name, raised.producer_version = source.producer_name, source.producer_version
    raised.domain, raised.model_version, raised.doc_string = source.domain, source.model_version, source.doc_string
    values = {str(value.name): value for value in _values(source)}
    for value in _values(raised):
        old = values.get(str(value.name))
        if old is not None:
            value.metadata_props.update(old.metadata_props)
            value.type = value.type or old.type
            value.shape = value.shape if old.shape is None else old.shape
    makers = {str(value.name): node for node in _nodes(source) for value in node.outputs if value.name}
    by_name = {str(node.name): node for node in _nodes(source) if node.name}
    kept = Counter(str(node.name) for node in _nodes(raised) if node.name)
    origins: dict[ir.Node, ir.Node] = {}
    for node in reversed(list(_nodes(raised))):
        # What the converter put in serves the node that makes its tensor, that has its name, or that reads it.
        read_by = (origins[reader] for value in node.outputs for reader in value.consumers() if reader in origins)
        made = next((makers[str(value.name)] for value in node.outputs if str(value.name) in makers), None)
        origin = made or by_name.get(str(node.name)) or next(read_by, None)
        if origin is None:
            continue
        origins[node] = origin
        node.metadata_props.update(origin.metadata_props)
        node.doc_string = node.doc_string or origin.doc_string
        if made is None:
            # The PyTorch node stands for one tensor, and this is not the one.
            node.metadata_props.pop(TORCH_NODE_KEY, None)
        if not node.name and origin.name:
            node.name = f"{origin.name}/{node.op_type}" if made is None or kept[origin.name] else origin.name


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    from onnx_ir.traversal import RecursiveGraphIterator

    yield from RecursiveGraphIterator(model.graph)


def _values(model: ir.Model) -> Iterable[ir.Value]:
    inside = (value for node in _nodes(model) for value in node.outputs)
    return dict.fromkeys((*model.graph.inputs, *model.graph.initializers.values(), *inside))


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _set_strings(node: ir.Node, attributes: dict[str, str]) -> None:
    import onnx_ir as ir

    for name, text in attributes.items():
        node.attributes[name] = ir.AttrString(name, text)
