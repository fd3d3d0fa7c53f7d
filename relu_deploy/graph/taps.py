"""Expose tensors inside a graph as additional graph outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph.bodies import expose, is_exposable, iterate_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["with_taps"]


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
            raise InputError(f"no node of the graph computes a tensor called {name!r}", "relu-deploy inspect lists the Relus")
        value, path = computed[name]
        if not is_exposable(value, path, tapped):
            where = "/".join(str(step.node.name) for step in path)
            raise InputError(f"the tensor {name!r} inside {where} cannot be observed", "leave it out")
        tapped.graph.outputs.append(expose(value, path) if path else value)
        outputs.add(name)
    return tapped
