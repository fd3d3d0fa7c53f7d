"""Find the Relus of a graph, in each form in which ONNX can express one.

Rules:

1. `Relu` is a Relu.
2. `Clip` whose lower bound is the constant 0 is one too: with upper bound 6 a ReLU6, with any other upper bound a
   clipped Relu, with none a plain Relu.
3. `Max` of a tensor and the constant 0 is a Relu.
4. A Relu is `fused_with` the nodes that runtimes merge it into: the Conv, Gemm, MatMul, BatchNormalization or Add chain
   that feeds nothing but it.
5. Relus inside the bodies of If, Loop and Scan nodes are Relus too; `body` says where they are.
6. Order is the graph's topological order; `index` counts from 0 in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.graph.bodies import is_exposable, iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.shared_models import shared_by

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SCOPE_KEY", "TORCH_NODE_KEY", "Relu", "find_relus"]

#: metadata keys under which export keeps where a Relu came from: PyTorch module path, and node in source.pt2
SCOPE_KEY, TORCH_NODE_KEY = "relu_deploy.scope", "relu_deploy.torch_node"

#: operators that may lie between a Relu and the kernel that absorbs it, in the order in which runtimes fuse them
FUSED_FEEDERS = ("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Relu:
    """One Relu of a graph.

    Attributes:
        node: Name of the node.
        index: Position among the Relus, from 0.
        kind: "relu", "relu6" or "clip".
        input: Name of the tensor that it reads.
        output: Name of the tensor that it computes.
        shape: Shape of the output, ints and names of varying dimensions; None when not inferred.
        scope: Path of the PyTorch module that it came from, "" where unknown.
        torch_node: Its node in the exported program, "" where unknown.
        fused_with: Names of the nodes that runtimes compute together with it, nearest first.
        upper: The bound of a ReLU6 or clipped Relu, None where there is none.
        body: "" in the top graph, else the path of the nodes and attributes around it, for instance "if/then_branch".
        observable: Whether `with_taps` can expose its output.
        is_iterated: Whether the exposed output has a leading axis of iterations (of the Loop or Scan around it).
    """

    node: str
    index: int
    kind: str
    input: str
    output: str
    shape: tuple[int | str, ...] | None
    scope: str
    torch_node: str
    fused_with: tuple[str, ...]
    upper: float | None = None
    body: str = ""
    observable: bool = True
    is_iterated: bool = False

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "node": self.node,
            "index": self.index,
            "kind": self.kind,
            "shape": None if self.shape is None else list(self.shape),
            "scope": self.scope,
            "fused_with": list(self.fused_with),
        }
        return fields | ({"body": self.body, "observable": self.observable} if self.body else {})


def find_relus(model: ir.Model) -> list[Relu]:
    """Return the Relus of `model` in topological order, those inside If, Loop and Scan bodies at the place of their node.

    Relus of a local function that was not inlined are returned for each call, as not observable.
    """
    shared = shared_by(model)
    if shared is None:
        return _find_relus(model)
    if shared.relus is None:
        shared.relus = tuple(_find_relus(model))
    return list(shared.relus)


def _find_relus(model: ir.Model) -> list[Relu]:
    relus: list[Relu] = []
    for node, path in iterate_nodes(model):
        kind, source, upper = _relu_kind(node)
        if source is None:
            continue
        output = node.outputs[0]
        shape = None
        if output.shape is not None:
            shape = tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in output.shape)
        relus.append(
            Relu(
                node=node.name or f"{node.op_type}_{len(relus)}",
                index=len(relus),
                kind=kind,
                input=str(source.name),
                output=str(output.name),
                shape=shape,
                scope=node.metadata_props.get(SCOPE_KEY, ""),
                torch_node=node.metadata_props.get(TORCH_NODE_KEY, ""),
                fused_with=tuple(_absorbed_by(source)),
                upper=upper,
                body="/".join(f"{step.node.name}/{step.attribute}" if step.attribute else str(step.node.name) for step in path),
                observable=is_exposable(output, path, model),
                is_iterated=any(step.node.op_type in ("Loop", "Scan") for step in path),
            )
        )
    return relus


def _relu_kind(node: ir.Node) -> tuple[str, ir.Value | None, float | None]:
    if not is_standard(node):
        return "", None, None
    if node.op_type == "Relu":
        return "relu", node.inputs[0], None
    if node.op_type == "Clip" and _clip_bound(node, "min", 1) == 0:
        upper = _clip_bound(node, "max", 2)
        return ("relu" if upper is None else "relu6" if upper == 6 else "clip"), node.inputs[0], upper
    if node.op_type == "Max" and len(node.inputs) == 2:
        constants = [_scalar(value) for value in node.inputs]
        for position, constant in enumerate(constants):
            if constant == 0 and constants[1 - position] is None:
                return "relu", node.inputs[1 - position], None
    return "", None, None


def _clip_bound(node: ir.Node, attribute: str, position: int) -> float | None:
    if attribute in node.attributes:  # opset 6
        return float(node.attributes[attribute].as_float())
    return _scalar(node.inputs[position]) if position < len(node.inputs) else None


def _scalar(value: ir.Value | None) -> float | None:
    if value is None:
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        tensor = attribute.as_tensor() if attribute is not None else None
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _absorbed_by(value: ir.Value) -> list[str]:
    absorbed: list[str] = []
    position = 0
    while (node := value.producer()) is not None and len(value.consumers()) == 1 and node.op_type in FUSED_FEEDERS[position:]:
        absorbed.append(str(node.name))
        position = FUSED_FEEDERS.index(node.op_type) + 1
        if node.op_type in FUSED_FEEDERS[2:]:
            break
        # At a residual Add the kernel is the branch that has no other reader.
        branches = [source for source in node.inputs if source is not None and source.producer() is not None]
        value = next((branch for branch in branches if len(branch.consumers()) == 1), branches[0]) if branches else value
        if not branches:
            break
    return absorbed
