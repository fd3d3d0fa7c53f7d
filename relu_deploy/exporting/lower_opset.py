"""Writing an exported graph at an operator set older than the oldest one that torch's exporter writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.exporting.older_forms import NoOlderForm, write_older_form
from relu_deploy.exporting.older_operators import first_version, write_older_operators
from relu_deploy.graph import name_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.shapes.shape_inference import infer_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LOWEST", "LOWEST_OF_TORCH", "lower_opset"]

#: Oldest operator set to write: before 13, more operators have their axes as attributes.
LOWEST, LOWEST_OF_TORCH = 13, 18
#: The IR version of ONNX 1.13, which runtimes that stop at opset 17 read.
OLD_IR_VERSION = 8


def lower_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return `model` at an older operator set, with its node names, metadata and dimensions' names; it is changed in place.

    Raises:
        InputError: If an operator cannot be written at that operator set.
    """
    if opset < LOWEST:
        raise InputError(f"graphs cannot be written at opset {opset}", f"export with --opset {LOWEST} or later")
    # The types of tensors inside bodies are not recorded.
    infer_shapes(model)
    write_older_operators(model, opset)
    for node in [node for node in model.graph.all_nodes() if is_standard(node)]:
        try:
            write_older_form(node, opset)
        except NoOlderForm as error:
            raise _refused(node, opset, str(error), error.since) from None
    for node in model.graph.all_nodes():
        if is_standard(node):
            _check(node, opset)
    for domain in [domain for domain in model.opset_imports if domain in ("", "ai.onnx")]:
        model.opset_imports[domain] = opset
    model.ir_version = min(model.ir_version, OLD_IR_VERSION)
    name_nodes(model)
    return model


def _check(node: ir.Node, opset: int) -> None:
    """Raise InputError if the operator set does not have this node, after dropping attributes that change nothing.

    The operators whose defaults or operands have another meaning there are those that `write_older_form` has written.
    """
    from onnx import defs

    since = first_version(node.op_type)
    if since is None or since > opset:
        raise InputError(
            f"this model cannot be written at opset {opset}: the node {node.name!r} is a {node.op_type}, "
            f"an operator that opset {since} introduced",
            f"export it with --opset {since} or later",
        )
    old, new = (defs.get_schema(node.op_type, version, "") for version in (opset, LOWEST_OF_TORCH))
    for name, attribute in [(name, each) for name, each in node.attributes.items() if name not in old.attributes]:
        # `allowzero` only matters for a shape with a zero, and so for an empty tensor.
        harmless = name == "allowzero" and _has_no_zero(node.inputs[1])
        if name not in new.attributes or not (harmless or attribute.value == _default(new.attributes[name])):
            raise _refused(node, opset, f"it has {name}={attribute.value!r}, which this operator set does not have")
        del node.attributes[name]
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        raise _refused(node, opset, "it has operands that this operator set does not have")
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in old.type_constraints}
    for side, formal in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for position, value in enumerate(side):
            each = formal[min(position, len(formal) - 1)] if formal else None
            kind = _type_of(value)
            if each is not None and kind and kind not in allowed.get(each.type_str, {each.type_str}):
                raise _refused(node, opset, f"it takes {kind.removeprefix('tensor(').rstrip(')')} only in later operator sets")


def _has_no_zero(value: ir.Value | None) -> bool:
    known = constant_of(value)
    return known is None or bool(known.all())


def _default(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
    return value.decode() if isinstance(value, bytes) else value


def _type_of(value: ir.Value | None) -> str:
    """Return the type of a tensor as definitions of operators write it, "" where it is not known."""
    import onnx_ir as ir

    if value is None or not isinstance(value.type, ir.TensorType):
        return ""
    names = {"FLOAT": "float", "DOUBLE": "double"}
    return f"tensor({names.get(value.dtype.name, value.dtype.name.lower())})" if value.dtype is not None else ""


def _refused(node: ir.Node, opset: int, reason: str, since: int = LOWEST_OF_TORCH) -> InputError:
    return InputError(
        f"this model cannot be written at opset {opset}: the {node.op_type} {node.name!r} has no such form, {reason}",
        f"export it with --opset {since} or later",
    )
