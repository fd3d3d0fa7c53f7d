"""Several nodes in the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.relus import TORCH_NODE_KEY

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NodeParts"]


class NodeParts:
    """The nodes that stand for one, named after it."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._nodes: list[ir.Node] = []

    def add(self, operator: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        """Return the result of a new node."""
        import onnx_ir as ir

        name = f"{self._node.name}/{operator}_{len(self._nodes)}"
        made = ir.node(operator, list(operands), attributes or None, name=name)
        made.outputs[0].name = name
        made.metadata_props.update({k: v for k, v in self._node.metadata_props.items() if k != TORCH_NODE_KEY})
        self._nodes.append(made)
        return made.outputs[0]

    def constant(self, array: Any) -> ir.Value:
        """Return a new constant."""
        import onnx_ir as ir

        name = f"{self._node.name}/constant_{len(self._nodes)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        made = ir.node("Constant", [], {"value": tensor}, name=name)
        made.outputs[0].name, made.outputs[0].type = name, ir.TensorType(tensor.dtype)
        made.outputs[0].shape = ir.Shape(np.shape(array))
        self._nodes.append(made)
        return made.outputs[0]

    def inserted_constant(self, array: Any, name: str) -> ir.Value:
        """Return a new constant that is in the graph already, before the node, which stays."""
        made = self.constant(array)
        made.name = f"{self._node.name}/{name}"
        graph = self._node.graph
        assert graph is not None
        graph.insert_before(self._node, self._nodes)
        self._nodes = []
        return made

    def replace(self, result: ir.Value) -> None:
        """Put the new nodes in the place of the old one. result: The tensor that stands for its first output."""
        old, graph = self._node.outputs[0], self._node.graph
        assert graph is not None
        graph.insert_before(self._node, self._nodes)
        name = old.name
        result.type, result.shape = old.type, old.shape
        result.metadata_props.update(old.metadata_props)
        last = result.producer()
        assert last is not None
        last.metadata_props.update(self._node.metadata_props)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(self._node, safe=True)
        result.name = name
