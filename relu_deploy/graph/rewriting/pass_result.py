"""The result that every graph pass returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PassResult"]

Report = TypeVar("Report")


@dataclass(frozen=True)
class PassResult(Generic[Report]):
    """A transformed graph and what the transformation did.

    Attributes:
        model: The new graph. The pass does not modify the one it was given.
        changed: Whether anything was transformed.
        report: What was transformed and what was not, with the reasons.
    """

    model: ir.Model
    changed: bool
    report: Report
