"""What a verification runs on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle
from relu_deploy.graph import Relu
from relu_deploy.tensors import Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["VerifyPlan"]


@dataclass(frozen=True)
class VerifyPlan:
    """What every backend runs.

    Attributes:
        relus: The Relus to compare.
        options: As for `load`: threads, device, optimization.
        seed: Of the rows that the checks without a reference add to `feeds`.
    """

    bundle: Bundle
    model: ir.Model
    precision: str
    relus: Sequence[Relu]
    feeds: Feeds
    options: Mapping[str, Any]
    seed: int
