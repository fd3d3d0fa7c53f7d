"""Write Clip of integers as Max and Min, for runtimes that clip floating-point numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["has_integer_clip", "without_integer_clip"]


def has_integer_clip(model: ir.Model) -> bool:
    """Return whether a Clip of `model`, whose types are inferred, has integer operands."""
    return any(_is_integer_clip(node) for node, _ in iterate_nodes(model))


def without_integer_clip(model: ir.Model) -> ir.Model:
    """Return a copy of `model` (weights shared) in which Min(Max(x, low), high) stands for each Clip of integers.

    The definition of Clip since operator set 13: the upper bound wins where the bounds cross. The last node keeps the name
    of the Clip, and its tensor that of the result.
    """
    import onnx_ir as ir

    changed = model.clone()
    for node, _ in list(iterate_nodes(changed)):
        if not _is_integer_clip(node):
            continue
        bounds = [node.inputs[position] if position < len(node.inputs) else None for position in (1, 2)]
        steps = [(operator, bound) for operator, bound in zip(("Max", "Min"), bounds, strict=True) if bound is not None]
        graph, name, value, made = node.graph, str(node.name), node.inputs[0], []
        assert graph is not None
        assert value is not None
        for position, (operator, bound) in enumerate(steps or [("Identity", None)]):
            last = position + 1 == max(1, len(steps))
            new = ir.node(operator, [value] if bound is None else [value, bound], name=name if last else f"{name}/{operator}")
            value = new.outputs[0]
            value.name, value.type, value.shape = f"{name}/{operator}", node.outputs[0].type, node.outputs[0].shape
            made.append(new)
        made[-1].metadata_props.update(node.metadata_props)
        graph.insert_before(node, made)
        result = node.outputs[0]
        result.replace_all_uses_with(value, replace_graph_outputs=True)
        final, result.name = result.name, None
        value.name = final
        graph.remove(node, safe=True)
    return changed


def _is_integer_clip(node: ir.Node) -> bool:
    value = node.inputs[0] if node.op_type == "Clip" and is_standard(node) else None
    return value is not None and value.dtype is not None and value.dtype.is_integer()
