"""Tensors behind an overflow of the graph's own types: where they go out of range, their error is no noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.bodies import dependents

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NonFinite", "behind_overflow"]


class NonFinite:
    """Counts the elements of each tensor of an evaluation that are NaN or infinite. counts: By tensor, of those that have any."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def seen(self, name: str, value: Any) -> Any:
        """Look at a tensor; see `Seen`."""
        # A sum takes no memory, and is finite only where all elements are.
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value.sum()):
            count = int(np.count_nonzero(~np.isfinite(value)))
            if count:
                self.counts[name] = self.counts.get(name, 0) + count
        return value


def behind_overflow(model: ir.Model, computed: NonFinite, true: NonFinite) -> set[str]:
    """Return the tensors that depend on one with more such elements in the graph's own types than in float64."""
    overflown = {name for name, count in computed.counts.items() if count > true.counts.get(name, 0)}
    nodes = dependents(model, lambda node: any(str(value.name) in overflown for value in node.outputs))
    return {str(value.name) for node in nodes for value in node.outputs}
