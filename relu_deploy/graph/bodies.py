"""Nodes inside the bodies of If, Loop and Scan: iterate over them, name them, and expose their tensors to the top graph.

A tensor of a branch becomes one more output of the If, empty where another branch runs. A tensor of a Loop or Scan body becomes
a scan output: the values of all iterations along a new first axis, which needs the same shape in each iteration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "BodyStep",
    "bodies_of",
    "dependents",
    "expose",
    "has_loops",
    "inner_nodes",
    "is_exposable",
    "iterate_nodes",
    "name_bodies",
]

_ITERATING = ("Loop", "Scan")


class BodyStep(NamedTuple):
    """One step from the top graph inwards. attribute: name of the body, "" for a local function that `node` calls."""

    node: ir.Node
    attribute: str


Path = tuple[BodyStep, ...]


def iterate_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, Path]]:
    """Yield every node of `model` with the steps to its graph: a node first, then those inside it."""
    functions = model.functions
    waiting: list[tuple[Iterator[ir.Node], Path]] = [(iter(model.graph), ())]
    while waiting:
        nodes, path = waiting[-1]
        node = next(nodes, None)
        if node is None:
            waiting.pop()
            continue
        yield node, path
        # Nearly all nodes of a large graph end here.
        if not node.attributes and not functions:
            continue
        inner = [(iter(graph), (*path, BodyStep(node, name))) for name, graph in bodies_of(node)]
        function = functions.get(node.op_identifier())
        if function is not None:
            inner.append((iter(function), (*path, BodyStep(node, ""))))
        waiting += inner[::-1]


def has_loops(model: ir.Model) -> bool:
    """Return whether a node of `model` runs a graph again and again."""
    return any(node.op_type in _ITERATING for node, _ in iterate_nodes(model))


def bodies_of(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield the graphs in the attributes of `node`, each with the attribute's name. `then_branch` comes before `else_branch`."""
    import onnx_ir as ir

    if not node.attributes:
        return
    for name, attribute in sorted(node.attributes.items(), reverse=True) if node.op_type == "If" else node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}/{index}", graph) for index, graph in enumerate(attribute.as_graphs()))


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes in the bodies of `node`, those in the bodies of these included."""
    for _, body in bodies_of(node):
        for inner in body:
            yield inner
            yield from inner_nodes(inner)


def dependents(model: ir.Model, starts: Callable[[ir.Node], bool]) -> Iterator[ir.Node]:
    """Yield the nodes of the top graph that `starts` holds for, or for a node in their bodies, and all that depend on their results."""
    made: set[str] = set()
    for node in model.graph:
        inside = [node, *inner_nodes(node)]
        reads = any(value is not None and value.name in made for each in inside for value in each.inputs)
        if reads or any(map(starts, inside)):
            made |= {str(value.name) for value in node.outputs if value.name}
            yield node


def name_bodies(model: ir.Model) -> None:
    """Give the nodes and tensors inside bodies unique names, in place; the nodes of the top graph have theirs.

    A node is named `<enclosing node>/<node>`. A tensor keeps its name unless another tensor has it.
    """
    nodes = Counter(str(node.name) for node in model.graph)
    tensors = {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    tensors |= {str(value.name) for node in model.graph for value in node.outputs}
    for node, path in iterate_nodes(model):
        for _, graph in bodies_of(node):
            for value in (*graph.inputs, *graph.initializers.values()):
                value.name = _fresh(str(value.name), str(node.name), tensors)
        if not path or not path[-1].attribute:
            continue
        prefix = f"{path[-1].node.name}/"
        name = node.name or f"{node.op_type}_{len(nodes)}"
        name = name if name.startswith(prefix) else prefix + name
        while nodes[name]:
            nodes[name] += 1
            name = f"{name}_{nodes[name] - 1}"
        nodes[name] += 1
        node.name = name
        for value in node.outputs:
            if value.name:
                value.name = _fresh(value.name, str(path[-1].node.name), tensors)


def _fresh(name: str, prefix: str, taken: set[str]) -> str:
    fresh = name
    if fresh in taken:
        fresh = f"{prefix}/{name}"
        count = 1
        while fresh in taken:
            fresh, count = f"{prefix}/{name}_{count}", count + 1
    taken.add(fresh)
    return fresh


def is_exposable(value: ir.Value, path: Path, model: ir.Model) -> bool:
    """Return whether `expose` can make `value` a tensor of the top graph.

    Args:
        value: A tensor that a node of the innermost body computes.
        path: The steps from the top graph to that body.
        model: The whole model: sizes that its inputs have are the same in each iteration.
    """
    if not path:
        return True
    operators = [step.node.op_type for step in path]
    if any(operator not in ("If", *_ITERATING) for operator in operators) or any(not step.attribute for step in path):
        return False
    iterating = [operator for operator in operators if operator in _ITERATING]
    if not iterating:
        return value.dtype is not None
    if (len(operators) > 1 and operators[-1] not in _ITERATING) or len(iterating) > 1:
        # The branch that does not run, or an inner loop of varying length, would change the shape between iterations.
        return False
    stable = {str(dim.value) for entry in model.graph.inputs for dim in entry.shape or () if not isinstance(dim, int)}
    return (
        value.dtype is not None
        and value.shape is not None
        and all(isinstance(dim, int) or (dim.value is not None and str(dim.value) in stable) for dim in value.shape)
    )


def expose(value: ir.Value, path: Path) -> ir.Value:
    """Return a tensor of the top graph, of the same name, with what `value` has inside the bodies of `path`, in place.

    `value` itself is renamed. It must be exposable.
    """
    name = str(value.name)
    value.name = f"{name}/in_body"
    for depth, step in reversed(list(enumerate(path))):
        value = _pass_out(value, step, name if depth == 0 else f"{name}/in_body_{depth}", f"{name}/exposed_{depth}")
    return value


def _pass_out(value: ir.Value, step: BodyStep, name: str, inner_name: str) -> ir.Value:
    """Return a new output of `step`'s node, called `name`, with what `value` has in its body."""
    import onnx_ir as ir

    node, bodies = step.node, dict(bodies_of(step.node))
    body = bodies[step.attribute]
    copied = ir.node("Identity", [value], name=inner_name)
    copied.outputs[0].name, copied.outputs[0].type, copied.outputs[0].shape = inner_name, value.type, value.shape
    body.append(copied)
    carried = len(body.outputs) - (node.op_type == "Loop")
    body.outputs.append(copied.outputs[0])
    for other in bodies.values():
        if node.op_type == "If" and other is not body:
            assert value.dtype is not None
            nothing = ir.tensor(np.empty(0, value.dtype.numpy()), name=f"{inner_name}/empty")
            empty = ir.node("Constant", [], {"value": nothing}, name=f"{inner_name}/not_run")
            empty.outputs[0].name, empty.outputs[0].type = f"{inner_name}/not_run", value.type
            empty.outputs[0].shape = ir.Shape([0])
            other.append(empty)
            other.outputs.append(empty.outputs[0])
    for attribute in ("scan_output_axes", "scan_output_directions"):
        if node.op_type == "Scan" and attribute in node.attributes:
            node.attributes[attribute] = ir.AttrInt64s(attribute, [*node.attributes[attribute].as_ints(), 0])
    if node.op_type != "If":
        while len(node.outputs) < carried:
            node.resize_outputs(len(node.outputs) + 1)
            node.outputs[-1].name = ""
    node.resize_outputs(len(node.outputs) + 1)
    result = node.outputs[-1]
    result.name, result.type = name, value.type
    if node.op_type in _ITERATING and value.shape is not None:
        result.shape = ir.Shape([None, *value.shape])
    return result
