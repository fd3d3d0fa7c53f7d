"""Sort the nodes of a graph, so that one pass over them meets each tensor after the node that computes it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from relu_deploy.graph.loading.traversal import bodies_of, outer_reads

if TYPE_CHECKING:
    import onnx

__all__ = ["sort_nodes"]


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort the nodes of `graph` and of the graphs inside it topologically, in place. What is sorted keeps its order.

    Args:
        graph: A graph whose structure was checked: no node depends on itself.
    """
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        order = _order(current)
        if order is not None:
            nodes = [_copy(current.node[index]) for index in order]
            del current.node[:]
            current.node.extend(nodes)
        for node in current.node:
            waiting += bodies_of(node)


def _order(graph: onnx.GraphProto) -> list[int] | None:
    """Return the places of the nodes in an order that is topological (Kahn's algorithm), None if they are sorted."""
    reads = [{*node.input} | outer_reads(node) for node in graph.node]
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    pending = [{maker[name] for name in names if name in maker} for names in reads]
    if all(max(makers, default=-1) < index for index, makers in enumerate(pending)):
        return None
    readers: dict[int, list[int]] = {}
    for index, makers in enumerate(pending):
        for each in makers:
            readers.setdefault(each, []).append(index)
    counts = [len(makers) for makers in pending]
    ready = deque(index for index, count in enumerate(counts) if count == 0)
    order = []
    while ready:
        order.append(ready.popleft())
        for reader in readers.get(order[-1], ()):
            counts[reader] -= 1
            if counts[reader] == 0:
                ready.append(reader)
    return order


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = type(node)()
    copied.CopyFrom(node)
    return copied
