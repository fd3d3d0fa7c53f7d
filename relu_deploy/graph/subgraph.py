"""Extract a part of a graph that runs on its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.bodies import inner_nodes, iterate_nodes
from relu_deploy.graph.taps import with_taps

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Producers", "extract_subgraph", "nodes_between", "outer_reads"]


class Producers:
    """The nodes of a graph that compute each tensor, for many walks through one graph that is not changed meanwhile."""

    def __init__(self, model: ir.Model) -> None:
        nodes = iterate_nodes(model)
        self._computed = {value.name: path[0].node if path else node for node, path in nodes for value in node.outputs}
        self._places = {node: place for place, node in enumerate(model.graph)}

    def nodes_between(self, inputs: Collection[str], outputs: Sequence[str]) -> list[ir.Node]:
        """Return what the function `nodes_between` does, in a time that depends on the number of these nodes alone."""
        computed = self._computed
        if missing := [name for name in outputs if name not in computed]:
            raise InputError(
                f"no node of the graph computes a tensor called {missing[0]!r}", "relu-deploy inspect lists the Relus"
            )
        needed, waiting = set(), [computed[name] for name in outputs]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                # Subgraphs (If, Loop) read outer tensors without naming them as inputs.
                reads = [*node.inputs, *(value for value, _, _ in outer_reads(node))]
                waiting += [
                    computed[value.name]
                    for value in reads
                    if value is not None and value.name in computed and value.name not in inputs
                ]
        return sorted(needed, key=self._places.__getitem__)


def nodes_between(model: ir.Model, inputs: Collection[str], outputs: Sequence[str]) -> list[ir.Node]:
    """Return the nodes of the top graph that compute the tensors `outputs` from the tensors `inputs`, in the graph's order.

    The walk also ends at the graph's own inputs and its weights. A tensor inside a body is computed by the node around it.

    Raises:
        InputError: If no node computes an output.
    """
    return Producers(model).nodes_between(inputs, outputs)


def extract_subgraph(model: ir.Model, inputs: Collection[str], outputs: Sequence[str]) -> ir.Model:
    """Return a new model that computes the tensors `outputs` from those of `inputs` that it needs (and the graph's own inputs).

    Args:
        model: The graph; its weights are shared.
        inputs: Tensors of the top graph to feed, also those that other nodes of the part compute.
        outputs: Tensors to compute. Those inside bodies are exposed as `with_taps` does.

    Raises:
        InputError: If no node computes an output, or one inside a body cannot be exposed.
    """
    inner = {value.name for node, path in iterate_nodes(model) if path for value in node.outputs}
    piece = with_taps(model, [name for name in outputs if name in inner])
    keep = {node.name for node in nodes_between(piece, inputs, outputs)}
    values = {value.name: value for node in piece.graph for value in node.outputs}
    for name in inputs:
        if name in values and name not in outputs:
            _feed(piece, values[name])
    piece.graph.outputs.clear()
    piece.graph.outputs.extend(values[name] for name in outputs)
    piece.graph.remove([node for node in reversed(list(piece.graph)) if node.name not in keep], safe=False)
    read = {value.name for node in piece.graph for value in node.inputs if value is not None}
    read |= {value.name for node in piece.graph for value, _, _ in outer_reads(node)}
    for value in [value for value in piece.graph.inputs if value.name not in read]:
        piece.graph.inputs.remove(value)
    for name in [name for name in piece.graph.initializers if name not in read]:
        del piece.graph.initializers[name]
    return piece


def _feed(model: ir.Model, made: ir.Value) -> None:
    """Let the readers of the tensor `made` read a new graph input of the same name, type and shape."""
    import onnx_ir as ir

    fed = ir.Value(name=made.name, type=made.type, shape=made.shape)
    made.name = f"{made.name}/made"
    for node, index in list(made.uses()):
        node.replace_input_with(index, fed)
    model.graph.inputs.append(fed)


def outer_reads(node: ir.Node) -> list[tuple[ir.Value, ir.Node, int]]:
    """Return the tensors that the nodes in the bodies of `node` read, those of the bodies included, each with the node and the position."""
    return [
        (value, inner, position)
        for inner in inner_nodes(node)
        for position, value in enumerate(inner.inputs)
        if value is not None
    ]
