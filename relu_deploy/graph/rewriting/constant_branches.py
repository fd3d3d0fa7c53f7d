"""Replace each If whose condition is a constant by the branch that runs, so that its layers are nodes like all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relu_deploy.graph.intervals.operands import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["inline_constant_branches"]


def inline_constant_branches(model: ir.Model) -> ir.Model:
    """Return a copy of `model` (weights shared) in which every If of the top graph with a constant condition is inlined.

    Nodes and tensors of the branch keep their names, which `load_model` has made unique. An If inside such a branch is
    inlined as well. An If inside a Loop, a Scan or a branch that is not inlined stays.
    """
    inlined = model.clone()
    waiting = list(inlined.graph)
    while waiting:
        node = waiting.pop()
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and (taken := _taken_branch(node)) is not None:
            waiting += _inline(inlined.graph, node, taken)
    return inlined


def _taken_branch(node: ir.Node) -> ir.Graph | None:
    """Return the branch of an If that always runs, None where that depends on the data."""
    condition = node.inputs[0]
    if condition is None or condition.is_graph_input():
        return None
    constant = constant_of(condition)
    if constant is None or constant.size != 1:
        return None
    return node.attributes["then_branch" if bool(constant.reshape(())) else "else_branch"].as_graph()


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> list[ir.Node]:
    """Put the nodes of `branch` in the place of `node`, and return them."""
    import onnx_ir as ir

    results = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        graph.register_initializer(value)
    nodes = list(branch)
    branch.remove(nodes)
    graph.insert_before(node, nodes)
    for position, (output, result) in enumerate(zip(node.outputs, results, strict=True)):
        # A result may be read by others, or be a tensor from outside: it keeps its name, and the If's output becomes its copy.
        copied = ir.node("Identity", [result], name=f"{node.name}/output_{position}")
        copied.outputs[0].type, copied.outputs[0].shape = output.type or result.type, output.shape or result.shape
        graph.insert_before(node, copied)
        output.replace_all_uses_with(copied.outputs[0], replace_graph_outputs=True)
        final, output.name = output.name, None
        copied.outputs[0].name = final
    graph.remove(node, safe=True)
    return nodes
