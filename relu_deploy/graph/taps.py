"""Expose tensors inside a graph as additional graph outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["with_taps"]


def with_taps(model: ir.Model, tensors: Iterable[str]) -> ir.Model:
    """Return a copy of `model` (weights shared) whose outputs are its own, then `tensors` in the given order.

    A tensor that already is an output is not repeated. Raises InputError for a tensor that no node makes.
    """
    tapped = model.clone()
    outputs = {value.name for value in tapped.graph.outputs}
    made = {value.name: value for node in tapped.graph for value in node.outputs}
    for name in tensors:
        if name in outputs:
            continue
        if name not in made:
            raise InputError(f"no node of the graph makes a tensor called {name!r}", "relu-deploy inspect lists the Relus")
        tapped.graph.outputs.append(made[name])
        outputs.add(name)
    return tapped
