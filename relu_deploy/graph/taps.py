"""Expose tensors inside a graph as additional graph outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph.bodies import expose, is_exposable, iterate_nodes
from relu_deploy.graph.model import to_one_proto

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["plain_taps", "tapped_bytes", "with_taps"]


@without_collecting()
def with_taps(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """Return a copy of `model` with the outputs of `model`, then `tensors` in the given order.

    Args:
        model: The graph; its weights are shared.
        tensors: Names of tensors that nodes compute. One that is already an output is not repeated. A tensor inside the
            branch of an If is empty when another branch ran; one inside a Loop or Scan body has the values of all iterations
            along a new first axis.

    Raises:
        InputError: If no node computes a tensor, or if it cannot be exposed (see `Relu.observable`).
    """
    tapped = model.clone()
    outputs = {value.name for value in tapped.graph.outputs}
    computed = {value.name: (value, path) for node, path in iterate_nodes(tapped) for value in node.outputs}
    for name in tensors:
        if name in outputs:
            continue
        if name not in computed:
            raise _unknown(name)
        value, path = computed[name]
        if not is_exposable(value, path, tapped):
            where = "/".join(str(step.node.name) for step in path)
            raise InputError(f"the tensor {name!r} inside {where} cannot be observed", "leave it out")
        tapped.graph.outputs.append(expose(value, path) if path else value)
        outputs.add(name)
    return tapped


def plain_taps(model: ir.Model, tensors: Iterable[str]) -> list[ir.Value] | None:
    """Return what `with_taps` would add to the outputs, as values of `model` itself; None if one of them is inside a body.

    Exposing tensors of the top graph changes no node: where nothing else does, the copy of a large graph can be spared.

    Raises:
        InputError: If no node computes a tensor.
    """
    outputs = {value.name for value in model.graph.outputs}
    top = {value.name: value for node in model.graph for value in node.outputs}
    names = [name for name in dict.fromkeys(tensors) if name not in outputs]
    missing = [name for name in names if name not in top]
    if not missing:
        return [top[name] for name in names]
    inner = {value.name for node, path in iterate_nodes(model) if path for value in node.outputs}
    for name in missing:
        if name not in inner:
            raise _unknown(name)
    return None


@without_collecting()
def tapped_bytes(model: ir.Model, tensors: Iterable[str]) -> bytes:
    """Return the serialized graph that `with_taps` returns.

    Raises:
        InputError: As `with_taps`, or when the graph is too large for one message.
    """
    import onnx_ir as ir

    names = list(tensors)
    added = plain_taps(model, names)
    if added is None:
        return bytes(to_one_proto(with_taps(model, names)).SerializeToString())
    proto = to_one_proto(model)
    for value in added:
        ir.serde.serialize_value_into(proto.graph.output.add(), value)
    return bytes(proto.SerializeToString())


def _unknown(name: str) -> InputError:
    return InputError(f"no node of the graph computes a tensor called {name!r}", "relu-deploy inspect lists the Relus")
