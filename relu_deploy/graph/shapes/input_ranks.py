"""Ranks of inputs whose shape a file does not record: they follow from what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.weights import to_proto_without_weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["set_input_ranks", "settle_input_ranks"]

#: the largest rank that is tried: that of a batch of videos is 5
LARGEST = 6
#: inputs without a shape up to which ranks are tried: each trial takes as long as the graph is large
MOST_INPUTS = 16


def settle_input_ranks(model: ir.Model) -> None:
    """Give each input without a shape dimensions of unknown size, in place, where shape inference accepts one rank only.

    A Conv takes the rank of its weights, a Gemm matrices, a Transpose as many axes as it permutes.
    """
    open_ranks = [value for value in model.graph.inputs if value.shape is None and value.dtype and not value.is_initializer()]
    for value in open_ranks if len(open_ranks) <= MOST_INPUTS else ():
        fitting = [rank for rank in range(LARGEST + 1) if _fits(model, value, rank)]
        value.shape = _unknown_sizes(str(value.name), fitting[0]) if len(fitting) == 1 else None


def set_input_ranks(model: ir.Model, ranks: Mapping[str, int]) -> ir.Model:
    """Return `model`, or a copy in which the inputs without a shape have dimensions of unknown size. ranks: By input name."""
    if all(value.shape is not None or value.name not in ranks for value in model.graph.inputs):
        return model
    ranked = model.clone()
    for value in ranked.graph.inputs:
        name = str(value.name)
        if value.shape is None and name in ranks:
            value.shape = _unknown_sizes(name, ranks[name])
    return ranked


def _fits(model: ir.Model, value: ir.Value, rank: int) -> bool:
    value.shape = _unknown_sizes(str(value.name), rank)
    try:
        inferred = infer_with_values(to_proto_without_weights(model), strict_mode=True)
    except Exception:  # onnx raises InferenceError, and other types for graphs that it cannot serialize
        return False
    finally:
        value.shape = None
    return _fit_permutations(inferred.graph)


def _fit_permutations(graph: onnx.GraphProto) -> bool:
    """Return whether every Transpose permutes as many axes as its operand has, which inference does not check."""
    values = [value for value in (*graph.input, *graph.value_info) if value.type.tensor_type.HasField("shape")]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    permuted = ((node.input[0], each.ints) for node in graph.node if node.op_type == "Transpose" for each in node.attribute)
    return all(ranks.get(name, len(axes)) == len(axes) for name, axes in permuted)


def _unknown_sizes(name: str, rank: int) -> ir.Shape:
    import onnx_ir as ir

    return ir.Shape([f"{name}_{axis}" for axis in range(rank)])
