"""Run onnx's checker and shape inference on a graph, without its large weights and in linear time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relu_deploy.graph.bodies import bodies_of, iterate_nodes
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.weights import to_proto_without_weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["forget_shapes", "infer_shapes"]


def infer_shapes(model: ir.Model, *, strict: bool = False) -> None:
    """Infer the types and shapes of the tensors of `model`, in place.

    Args:
        model: The graph; what it records about tensors is kept where nothing is inferred.
        strict: Raise where shapes do not fit, instead of leaving out what follows from them.

    Raises:
        onnx.shape_inference.InferenceError: If `strict` and the shapes do not fit. The model is unchanged then.
    """
    try:
        proto = to_proto_without_weights(model)
        inferred = infer_with_values(proto, check_type=strict, strict_mode=strict)
    except Exception:
        # Without `strict` a graph that onnx does not accept keeps what it records.
        if strict:
            raise
        return
    _merge(model, inferred)


def _merge(model: ir.Model, inferred: onnx.ModelProto) -> None:
    import onnx_ir as ir

    known: dict[str, onnx.ValueInfoProto] = {}
    graphs = [inferred.graph]
    while graphs:
        graph = graphs.pop()
        known.update((value.name, value) for value in (*graph.value_info, *graph.output))
        for node in graph.node:
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
    outputs = [value for node, _ in iterate_nodes(model) for value in node.outputs]
    outputs += [value for node, _ in iterate_nodes(model) for _, body in bodies_of(node) for value in body.outputs]
    for value in (*outputs, *model.graph.outputs):
        info = known.get(str(value.name))
        if info is None or info.type.WhichOneof("value") is None:
            continue
        try:
            if value.type is None:
                value.type = ir.serde.deserialize_type_proto_for_type(info.type)
            shape = ir.serde.deserialize_type_proto_for_shape(info.type)
        except Exception:  # onnx_ir raises several types for maps and opaque values, which it does not represent
            continue
        if shape is not None:
            value.shape = shape


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Remove the recorded shapes of everything but the inputs, in place, so that inference starts from the inputs alone."""
    graphs = [graph]
    while graphs:
        current = graphs.pop()
        del current.value_info[:]
        for value in current.output:
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.ClearField("shape")
        for node in current.node:
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
