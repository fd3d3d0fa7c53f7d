"""What a verification runs on every backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle
from relu_deploy.graph import Relu
from relu_deploy.graph.precision import EIGHT_BITS, Quantized
from relu_deploy.tensors import Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["VerifyPlan"]


@dataclass(frozen=True)
class VerifyPlan:
    """What every backend runs.

    Attributes:
        bundle: What backends run.
        reference: Options of the reference evaluator, as for `load`.
        model: The graph of `bundle`.
        precision, quantized: The precision of the graph, and how it quantizes.
        relus: The Relus to compare.
        options: As for `load`: threads, device, optimization and others.
        seed: Of the rows that the checks without a reference add to `feeds`.
        accepted: Findings that do not fail a backend.
        random: The nodes that were replaced by one draw of their random numbers.
        unknown: The nodes that the reference evaluator does not have, and their operators.
        hidden: Names of the Relus inside bodies that cannot show their tensors.
        autocast: The precision in which the runtime may compute float32 nodes, "" for none.
        evaluated: The graph whose nodes are evaluated one by one: `bundle`, with floats in the place of quantized numbers.
        origins: The node of `bundle` by a node that only `evaluated` has.
    """

    bundle: Bundle
    reference: Mapping[str, Any]
    model: ir.Model
    precision: str
    relus: Sequence[Relu]
    feeds: Feeds
    options: Mapping[str, Any]
    seed: int
    accepted: Collection[str] = ()
    random: Sequence[str] = ()
    unknown: Sequence[tuple[str, str]] = ()
    hidden: Sequence[str] = ()
    autocast: str = ""
    quantized: Quantized = EIGHT_BITS
    evaluated: Bundle | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
