"""A node at fault, as reports name it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph import SCOPE_KEY

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """A node at fault.

    Attributes:
        where: "graph" or the name of a backend.
        kind: How its output differs, in one word (see `describe`).
        detail: The same as a sentence.
        error_ratio: The error of the node itself, in units of its noise; None where it was not measured.
        region: The nodes among which it was chosen, when the truth has no tensor between them.
    """

    node: str
    operator: str
    scope: str
    where: str
    kind: str
    detail: str
    error_ratio: float | None
    region: tuple[str, ...] = ()

    @classmethod
    def at(
        cls, node: ir.Node, where: str, description: tuple[str, str], ratio: float | None, region: Iterable[str] = ()
    ) -> Fault:
        """Return the fault of `node`. description: its kind and detail."""
        scope = node.metadata_props.get(SCOPE_KEY, "")
        return cls(str(node.name), node.op_type, scope, where, *description, ratio, tuple(region))

    def to_json(self) -> dict[str, Any]:
        ratio = self.error_ratio if self.error_ratio is not None and np.isfinite(self.error_ratio) else None
        return {
            "node": self.node,
            "operator": self.operator,
            "scope": self.scope,
            "where": self.where,
            "kind": self.kind,
            "detail": self.detail,
            "error_ratio": ratio,
            "region": list(self.region),
        }
