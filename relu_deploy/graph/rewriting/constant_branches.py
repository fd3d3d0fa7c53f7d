"""Replace each If whose condition is constant by the branch that runs, so that its layers are nodes like all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.shapes.settled import fold_sizes
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["has_branches", "inline_constant_branches"]

#: times that sizes are inferred again for the conditions of one graph
ROUNDS = 16


def has_branches(model: ir.Model) -> bool:
    """Return whether the top graph of `model` has an If."""
    return any(map(_is_if, model.graph))


def inline_constant_branches(model: ir.Model) -> ir.Model:
    """Return a copy of `model` (weights shared) in which every If of the top graph with a constant condition is inlined.

    A condition is constant too where it follows from sizes that the inputs of the graph fix. Nodes and tensors of the branch
    keep their names, which `load_model` has made unique. An If inside such a branch is inlined as well. An If inside a Loop, a
    Scan or a branch that is not inlined stays.
    """
    inlined = model.clone()
    _inline_where(inlined, lambda node: constant_of(node.inputs[0]))
    changed = False
    # Sizes behind an If are known only once its branch is: each round may settle further conditions.
    while has_branches(inlined):
        settled = _settled_conditions(inlined)
        if not _inline_where(inlined, lambda node, settled=settled: settled.get(str(node.name))):  # type: ignore[misc]
            break
        changed = True
    if changed:
        infer_shapes(inlined)
    return inlined


def _settled_conditions(model: ir.Model) -> dict[str, Array]:
    """Return the conditions of the Ifs of the top graph that follow from the sizes of the inputs, by name of the If."""
    sized = model.clone()
    # Recorded sizes may be wrong: they are inferred from the inputs alone.
    for node, _ in iterate_nodes(sized):
        for value in node.outputs:
            value.shape = None
    infer_shapes(sized)
    # A padding or a new shape that was computed gives further sizes once it is a constant.
    for _ in range(ROUNDS):
        if not fold_sizes(sized):
            break
        infer_shapes(sized)
    found = {str(node.name): constant_of(node.inputs[0]) for node in sized.graph if _is_if(node)}
    return {name: value for name, value in found.items() if value is not None}


def _is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and is_standard(node)


def _inline_where(model: ir.Model, condition_of: Callable[[ir.Node], Array | None]) -> bool:
    """Inline every If of the top graph for which `condition_of` returns its condition, and return whether there was one."""
    waiting, found = list(model.graph), False
    while waiting:
        node = waiting.pop()
        if _is_if(node) and (taken := _taken_branch(node, condition_of)) is not None:
            waiting += _inline(model.graph, node, taken)
            found = True
    return found


def _taken_branch(node: ir.Node, condition_of: Callable[[ir.Node], Array | None]) -> ir.Graph | None:
    """Return the branch of an If that always runs, None where that depends on the data."""
    if node.inputs[0] is None or node.inputs[0].is_graph_input():
        return None
    constant = condition_of(node)
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
