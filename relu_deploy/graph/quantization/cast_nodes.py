"""Types and casts of single tensors, as `lower.py` writes them: 16-bit weights, a Cast behind a tensor, names that are free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.quantization.cast_error import STORED

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["TYPED_BY", "cast", "fresh", "is_weight", "replace", "retype", "store", "taken_names", "tensor_type", "top_values"]

#: operators whose result has the type that an attribute names
TYPED_BY = {"Cast": "to", "ConstantOfShape": "value"}


def store(model: ir.Model, value: ir.Value, dtype: str, second: str) -> ir.Value:
    """Return the initializer that holds `value` in `dtype`: itself, or another one called `second`."""
    import onnx_ir as ir

    with np.errstate(over="ignore"):
        numbers = value.const_value.numpy().astype(STORED[dtype])  # type: ignore[union-attr]
    target = ir.Value(name=second, shape=value.shape) if second else value
    target.const_value, target.type = ir.tensor(numbers, name=target.name), tensor_type(dtype)
    if second:
        model.graph.register_initializer(target)
    return target


def retype(node: ir.Node, dtype: str) -> None:
    """Let an operator of `TYPED_BY` give `dtype`."""
    import onnx_ir as ir

    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(tensor_type(dtype).dtype))
    else:
        given = node.attributes.get("value")
        numbers = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(numbers.astype(STORED.get(dtype, np.float32))))


def cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, name: str, taken: set[str]) -> ir.Value:
    """Return `value` cast to `to`, as a tensor called `name`; the Cast stands right behind what makes `value`."""
    import onnx_ir as ir

    maker = value.producer()
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=fresh(f"{name}/cast", taken))
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(to), value.shape
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)
    return result


def replace(uses: Iterable[Any], output: ir.Value | None, by: ir.Value) -> None:
    """Let `uses`, as `Value.uses` names them, read `by`, and the graph give it where it gives `output`."""
    for use in uses:
        use.node.replace_input_with(use.idx, by)
    if output is not None and output.is_graph_output():
        outputs = output.graph.outputs  # type: ignore[union-attr]
        for position in [position for position, one in enumerate(outputs) if one is output]:
            outputs[position] = by


def top_values(model: ir.Model) -> list[ir.Value]:
    """Return the inputs, weights and results of `model`'s top graph, each once."""
    made = (value for node in model.graph for value in node.outputs)
    return list(dict.fromkeys((*model.graph.inputs, *model.graph.initializers.values(), *made)))


def taken_names(model: ir.Model) -> set[str]:
    """Return every name that a tensor or node of `model` has."""
    nodes = list(model.graph.all_nodes())
    values = {str(value.name) for node in nodes for value in node.outputs} | {str(value.name) for value in top_values(model)}
    return values | {str(node.name) for node in nodes}


def fresh(name: str, taken: set[str]) -> str:
    """Return `name`, with a number behind it where it is taken, and take it."""
    chosen = next(other for count in range(len(taken) + 1) if (other := f"{name}_{count}" if count else name) not in taken)
    taken.add(chosen)
    return chosen


def tensor_type(dtype: str) -> ir.TensorType:
    """Return the type of a tensor of `dtype`, one of `STORED`."""
    import onnx_ir as ir

    return ir.TensorType(ir.DataType.from_numpy(STORED[dtype]))


def is_weight(value: ir.Value) -> bool:
    """Return whether `value` is an initializer that nobody can feed."""
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()
