"""Refuses a verification that would need more memory than is allowed, before it starts.

The limit of loading, `memory_limit`, is that of one tensor. A verification holds every compared tensor as the truth, as the
backend's result and as its result for NaN, and evaluates the graph twice at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph import Relu
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.loading.resources import TENSORS, memory_limit
from relu_deploy.graph.loading.traversal import bodies_of
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.shapes.shape_inference import forget_shapes
from relu_deploy.graph.weights import to_proto_without_weights
from relu_deploy.tensors import Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["check_memory"]

#: bytes that stay of each element of a compared tensor: the truth (8), the backend's outputs and taps, and those for NaN (4 each)
KEPT = 24
#: bytes of each element of the largest tensor while it is computed twice at a time and its errors are measured
WORKING = 96


def check_memory(model: ir.Model, relus: Sequence[Relu], feeds: Feeds, name: str) -> None:
    """Check the memory that comparing the Relus and outputs of a graph takes.

    Args:
        model: The graph.
        relus: The Relus to compare.
        feeds: The inputs, which give the sizes of varying dimensions.
        name: What to call the model in an error.

    Raises:
        InputError: If it needs more than `TENSORS` tensors of the largest size that is allowed.
    """
    compared = {relu.output for relu in relus} | {str(value.name) for value in model.graph.outputs}
    elements = _elements(model, feeds)
    if not compared <= elements.keys():
        inferred = _inferred_elements(model, feeds)
        if inferred is None:  # the evaluation has the reason
            return
        elements |= inferred
    largest = max((array.size for array in feeds.values()), default=0)
    largest = max(largest, max(elements.values(), default=0))
    needed = KEPT * sum(elements.get(each, 0) for each in compared) + WORKING * largest
    if needed > TENSORS * memory_limit():
        raise InputError(
            f"verifying {name} on these inputs needs about {needed / 1e9:.3g} GB, at most {TENSORS * memory_limit() / 1e9:.3g} GB "
            "are allowed here",
            "give smaller input shapes or fewer --samples, or allow more with --max-memory",
        )


def _elements(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    """Return the number of elements of each tensor that a node computes and whose sizes are known."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.name in feeds and value.shape is not None:
            given = feeds[str(value.name)].shape
            names = (None if isinstance(dim, int) else dim.value for dim in value.shape)
            sizes.update((name, size) for name, size in zip(names, given, strict=False) if name is not None)
    return dict(_known(model, sizes))


def _inferred_elements(model: ir.Model, feeds: Feeds) -> dict[str, int] | None:
    """Return the number of elements of each tensor whose sizes follow from those of the inputs, None where these do not fit."""
    proto = to_proto_without_weights(model)
    forget_shapes(proto.graph)
    try:
        for value in proto.graph.input:
            if value.name in feeds:
                for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
                    dim.dim_value = size
        inferred = infer_with_values(proto, strict_mode=True)
    except Exception:  # the evaluation has the reason
        return None
    elements: dict[str, int] = {}
    graphs = [inferred.graph]
    while graphs:
        graph = graphs.pop()
        for value in (*graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
                if -1 not in dims:
                    elements[value.name] = prod(dims)
        for node in graph.node:
            graphs += bodies_of(node)
    return elements


def _known(model: ir.Model, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    for node, _ in iterate_nodes(model):
        for value in node.outputs:
            if not value.name or value.shape is None:
                continue
            dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value)) for dim in value.shape]
            known = [dim for dim in dims if dim is not None]
            if len(known) == len(dims):
                yield value.name, prod(known)
