"""Nodes whose operators the reference evaluator does not have: each is run on another backend, as a graph of its own.

Its operands are those of the evaluation, in the types that the graph has for them: the nodes around it are evaluated in
float64, and what is done to its operands (rounding, the tensors of another graph) shows in its results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Session
from relu_deploy.backends.reference.types import element_type
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported
from relu_deploy.graph.bodies import bodies_of
from relu_deploy.graph.model import save_model
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Delegate"]


class Delegate:
    """Runs single nodes of a graph on another backend.

    Attributes:
        types: The types of each node's operands, by its name; None for one that is a constant or is left out. They are
            learned in an evaluation in the graph's own types.
    """

    def __init__(self, model: ir.Model, load: Callable[[Bundle], Session]) -> None:
        """Begin without sessions.

        Args:
            model: The graph.
            load: Loads the graph of one node on the other backend.
        """
        self._model, self._load = model, load
        self._sessions: dict[tuple[str, tuple[int, ...]], Session] = {}
        # The sessions of a runtime need not be safe to be used by several evaluations at once.
        self._lock = threading.Lock()
        self.types: dict[str, tuple[np.dtype[Any] | None, ...]] = {}

    def run(self, node: ir.Node, operands: Sequence[Any], *, wide: bool) -> tuple[Any, ...]:
        """Return the results of a node in the types that it gives them, None for one that is left out.

        Args:
            node: A node of the graph.
            operands: Arrays by place, None for one that is left out.
            wide: Floating-point operands are in float64.

        Raises:
            Unsupported: If the node has graphs or reads anything but arrays, or the backend cannot run it.
        """
        name = str(node.name)
        if any(True for _ in bodies_of(node)) or any(isinstance(value, list | dict) for value in operands):
            raise Unsupported(
                f"node {name!r} ({node.domain}.{node.op_type}) is run by another backend, which takes only arrays",
                "verify against another ONNX file, or cut this node off",
            )
        with self._lock:
            if not wide:
                self.types[name] = tuple(value.dtype if isinstance(value, np.ndarray) else None for value in operands)
            fed = self._fed(node, operands, wide=wide)
            key = name, tuple(value.ndim for value in fed.values())
            if key not in self._sessions:
                self._sessions[key] = self._loaded(node, fed)
            results = self._sessions[key].run(fed)
        return tuple(results[_output(place)] if value.name else None for place, value in enumerate(node.outputs))

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _fed(self, node: ir.Node, operands: Sequence[Any], *, wide: bool) -> dict[str, Array]:
        """Return the operands that are not constants, in the types of the graph, under the names that they have in the piece."""
        fed = {}
        known = self.types.get(str(node.name), (None,) * len(operands))
        for place, (value, operand, kind) in enumerate(zip(node.inputs, operands, known, strict=True)):
            if value is None or operand is None or _constant(value) is not None:
                continue
            # A node that the evaluation in the graph's own types did not reach is in a branch: most numbers are float32.
            stored = operand.astype(kind or np.float32) if wide and operand.dtype == np.float64 else operand
            fed[_input(place)] = np.ascontiguousarray(stored).reshape(operand.shape)
        return fed

    def _loaded(self, node: ir.Node, fed: dict[str, Array]) -> Session:
        with temporary_folder("node") as folder:
            path = folder / "node.onnx"
            save_model(_piece(self._model, node, fed), path)
            try:
                return self._load(Bundle.open(path))
            except Unsupported as error:
                # Runtimes name the file, which the user does not know.
                reason = error.message.replace(f"Load model from {path} failed:", "").removeprefix("node: ")
                raise Unsupported(
                    f"the reference evaluator does not have the operator of node {str(node.name)!r} "
                    f"({node.domain}.{node.op_type}), and a runtime refuses it: {reason}",
                    "name a --backend that has it, or verify against another ONNX file",
                ) from error


def _piece(model: ir.Model, node: ir.Node, fed: dict[str, Array]) -> ir.Model:
    """Return the graph of one node: `fed` are its inputs, and its constant operands its initializers."""
    import onnx_ir as ir

    read: list[ir.Value | None] = []
    for place, value in enumerate(node.inputs):
        name = _input(place)
        tensor = None if value is None else _constant(value)
        if tensor is not None:
            shape = ir.Shape(tensor.numpy().shape)
            read.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
        elif name in fed:
            kind = ir.TensorType(ir.DataType(element_type(fed[name].dtype)))
            sizes = [f"{name}_{axis}" for axis in range(fed[name].ndim)]
            read.append(ir.Value(name=name, type=kind, shape=ir.Shape(sizes)))
        else:
            read.append(None)
    made = [ir.Value(name=_output(place) if value.name else "") for place, value in enumerate(node.outputs)]
    copy = ir.Node(
        node.domain, node.op_type, read, node.attributes.values(), overload=node.overload, outputs=made, name=node.name
    )
    given = [value for value in read if value is not None]
    graph = ir.Graph(
        [value for value in given if value.const_value is None],
        [value for value in made if value.name],
        nodes=[copy],
        initializers=[value for value in given if value.const_value is not None],
        opset_imports=dict(model.opset_imports),
        name="node",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the weight or constant that `value` is: some kernels take certain operands only as such."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return value.const_value if producer is None and value.is_initializer() else None


def _input(place: int) -> str:
    return f"input_{place}"


def _output(place: int) -> str:
    return f"output_{place}"
