"""Walks over the graphs inside an ONNX file, which take linear time and do not recurse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["bodies_of", "outer_reads", "tensors_of"]


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of `node`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def outer_reads(node: onnx.NodeProto) -> set[str]:
    """Return the names that the graphs inside `node` read without computing them."""
    reads: set[str] = set()
    waiting = [(body, frozenset[str]()) for body in bodies_of(node)]
    while waiting:
        body, known = waiting.pop()
        inner = known.union(
            (value.name for value in body.input),
            (tensor.name for tensor in body.initializer),
            (name for each in body.node for name in each.output),
        )
        for each in body.node:
            reads.update(name for name in each.input if name and name not in inner)
            waiting += [(nested, inner) for nested in bodies_of(each)]
        reads.update(value.name for value in body.output if value.name not in inner)
    return reads


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of `graph` and of the graphs inside it: initializers and attributes."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield from current.initializer
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
            waiting += bodies_of(node)
