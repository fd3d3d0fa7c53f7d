"""Checks that the nodes of a session were placed on the requested execution provider.

ONNX Runtime places nodes that compute shapes on the CPU even if the provider has kernels for them (`GetCpuPreferredNodes` in
its source): they read and write a few integers, which the CPU needs to allocate tensors. They do not count as a fallback.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, Unsupported

__all__ = ["has_nodes", "nodes_by_provider", "nodes_elsewhere", "require_provider", "shape_nodes"]

#: operators of shape arithmetic, which compute sizes, indices and axes when their operands are integers
SHAPE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Range", "Expand"),
        *("ConstantOfShape", "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs", "Equal", "Less"),
        *("Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Where", "ReduceProd", "ReduceSum", "ReduceMin"),
        *("ReduceMax", "ScatterND", "Tile", "Transpose", "Constant"),
    )
)
#: nodes that ONNX Runtime inserts to copy tensors between providers
COPIES = frozenset(("MemcpyToHost", "MemcpyFromHost"))
INTEGERS = frozenset(("INT32", "INT64", "BOOL"))


def nodes_by_provider(session: Any) -> dict[str, int]:
    """Return the number of nodes on each execution provider."""
    placement: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        placement[part.ep_name] += len(part.get_nodes())
    return dict(placement)


def has_nodes(session: Any, operators: Collection[str]) -> bool:
    """Return whether a node of the session has one of `operators`."""
    return any(node.op_type in operators for part in session.get_provider_graph_assignment_info() for node in part.get_nodes())


def nodes_elsewhere(session: Any, provider: str, bundle: Bundle) -> list[tuple[str, Any]]:
    """Return (provider, node) for each node on another provider than `provider`, except shape arithmetic."""
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider]
    nodes = [(part.ep_name, node) for part in parts for node in part.get_nodes()]
    if not nodes:
        return []
    integers = _integer_nodes(bundle)
    return [(where, node) for where, node in nodes if not _is_shape_arithmetic(node, integers)]


def require_provider(name: str, provider: str, session: Any, bundle: Bundle) -> None:
    """Check that `provider` started and runs all nodes except shape arithmetic.

    Raises:
        BackendUnavailable: If ONNX Runtime could not start the provider.
        Unsupported: If nodes are on another provider; the message names them.
    """
    if provider not in session.get_providers():
        raise BackendUnavailable(
            f"backend {name!r} is not usable here: ONNX Runtime could not start {provider}",
            "its message on stderr has the reason; relu-deploy doctor checks the usual ones",
        )
    left = [f"{node.op_type} {node.name!r}" for _, node in nodes_elsewhere(session, provider, bundle)]
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise Unsupported(
            f"{name} has no kernel for {len(left)} nodes of {bundle.name}: {shown}",
            "remove them from the graph, or use onnxruntime-cpu, which runs all of it",
        )


def shape_nodes(bundle: Bundle) -> list[str]:
    """Return the names of the nodes of the graph that compute shapes, and may be on the CPU."""
    from relu_deploy.graph.model import read_model

    integers = _integer_nodes(bundle)
    nodes = read_model(bundle.onnx).graph
    return [str(node.name) for node in nodes if node.op_type in SHAPE_OPERATORS and integers.get(str(node.name))]


def _is_shape_arithmetic(node: Any, integers: dict[str, bool]) -> bool:
    if node.op_type in COPIES:
        return True
    # Nodes that ONNX Runtime inserted are not in the graph; they are classified by their operator.
    return node.op_type in SHAPE_OPERATORS and integers.get(node.name, node.op_type in ("Shape", "Size"))


def _integer_nodes(bundle: Bundle) -> dict[str, bool]:
    """Return for each node of the graph whether all its outputs are integers or booleans."""
    from relu_deploy.graph.model import load_model
    from relu_deploy.graph.shapes.shape_inference import infer_shapes

    model = load_model(bundle.onnx)
    infer_shapes(model)
    return {
        str(node.name): all(value.dtype is not None and value.dtype.name in INTEGERS for value in node.outputs)
        for node in model.graph
    }
