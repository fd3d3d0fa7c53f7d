"""Which PyTorch module, and which node of the exported program, each ONNX node came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from relu_deploy.exporting.programs import program_batch_axes
from relu_deploy.graph import name_nodes
from relu_deploy.graph.relus import SCOPE_KEY, TORCH_NODE_KEY

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["annotate"]


def annotate(model: ir.Model, program: torch.export.ExportedProgram, only_batch_varies: bool) -> None:
    """Store on each node its PyTorch scope and, where known, its node in the program.

    The exporter's own metadata, which holds local paths, is dropped, and a varying batch is called "batch".

    Args:
        model: The graph that torch wrote.
        program: The program it was written from.
        only_batch_varies: Whether any varying dimension is the batch; else the program tells which one is.
    """
    batch = _batch_dim(model, program, only_batch_varies)
    if batch is not None:
        _rename_dim(model, batch, "batch")
    scope_of = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "").strip("[]").replace("'", "").split(", ")
        scope = scopes[-2] if len(scopes) > 1 else ""
        scope_of[node] = (scope, _family(scopes[-1]))
        # The exporter's own names, such as "n4_3", do not say where a node is.
        node.name = f"{scope}/{node.op_type}" if scope else None
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    name_nodes(model)
    for node, name in _origins(scope_of, program).items():
        node.metadata_props[TORCH_NODE_KEY] = name
    for node, (scope, _) in scope_of.items():
        if scope:
            node.metadata_props[SCOPE_KEY] = scope


def _batch_dim(model: ir.Model, program: torch.export.ExportedProgram, only_batch_varies: bool) -> ir.SymbolicDim | None:
    """Return the dimension of the inputs of `model` that is the batch, None if there is none."""
    shapes = [list(value.shape or ()) for value in model.graph.inputs]
    if only_batch_varies:
        candidates = [dim for shape in shapes for dim in shape]
    else:
        axes = program_batch_axes(program).values()
        candidates = [shape[axis] for shape, axis in zip(shapes, axes, strict=False) if axis is not None and axis < len(shape)]
    return next((dim for dim in candidates if not isinstance(dim, int) and dim.value), None)


def _origins(scope_of: Mapping[ir.Node, tuple[str, str]], program: torch.export.ExportedProgram) -> dict[ir.Node, str]:
    """Return for nodes of the graph the node of the program whose value they compute.

    The exporter decomposes and folds, so names differ. Within one scope both sides are in the program's order, so the
    k-th operator of a family (relu, add) on one side is the k-th on the other. A family with another number of operators
    on the two sides is left out, except in a scope whose only program node ends in one ONNX node.
    """
    in_program: dict[tuple[str, str], list[str]] = {}
    alone: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_schema", None):
            in_program.setdefault((_scope(node), _family(node.target._schema.name.split("::")[-1])), []).append(node.name)
            alone.setdefault(_scope(node), []).append(node.name)
    in_graph: dict[tuple[str, str], list[ir.Node]] = {}
    last: dict[str, ir.Node] = {}
    for node, (scope, family) in scope_of.items():
        in_graph.setdefault((scope, family), []).append(node)
        last[scope] = node
    origins: dict[ir.Node, str] = {}
    for key, nodes in in_graph.items():
        if len(nodes) == len(in_program.get(key, ())):
            origins |= dict(zip(nodes, in_program[key], strict=True))
    for scope, names in alone.items():
        if len(names) == 1 and scope in last:
            origins[last[scope]] = names[0]
    return origins


def _family(name: str) -> str:
    """Return the kind of operator that a name such as `add_828`, `hardtanh_` or `_native_batch_norm_legit_3` belongs to."""
    name = name.strip("_").rstrip("0123456789").strip("_")
    return "batch_norm" if "batch_norm" in name else name


def _rename_dim(model: ir.Model, old: Any, new: str) -> None:
    import onnx_ir as ir

    if isinstance(old, int):
        return
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        dims = list(value.shape or ())
        if any(not isinstance(dim, int) and dim.value == old.value for dim in dims):
            # A shape may be frozen.
            value.shape = ir.Shape([new if not isinstance(dim, int) and dim.value == old.value else dim for dim in dims])


def _scope(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""
