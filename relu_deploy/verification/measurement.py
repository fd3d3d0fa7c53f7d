"""What a backend returns, before it is judged: its outputs, the runs that need no reference, and its Relus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import capabilities, load
from relu_deploy.tensors import Feeds
from relu_deploy.verification.execution import ExecutionReport, compare_with_request
from relu_deploy.verification.judging.contract import feeds_of_nan, nan_is_kept
from relu_deploy.verification.judging.invariants import InvarianceCheck, run_invariance_checks
from relu_deploy.verification.plan import VerifyPlan
from relu_deploy.verification.tapping import TappedRelus, arrays_of, tap_relus

if TYPE_CHECKING:
    from relu_deploy.verification.engine.audit import AuditReport

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """What one backend returned.

    Attributes:
        outputs: Of the session as it ships, without taps.
        tapped: The Relus, None where the backend does not show them.
        nan_kept: By the Relu's tensor, whether a NaN passes through it; None where none reached it.
        audit: Of a TensorRT engine.
        note: Why the Relus are not shown.
    """

    name: str
    outputs: Feeds
    facts: Mapping[str, Any]
    execution: ExecutionReport
    invariance: Sequence[InvarianceCheck]
    tapped: TappedRelus | None = None
    nan_kept: Mapping[str, bool | None] = field(default_factory=dict)
    audit: AuditReport | None = None
    note: str = ""


def measure(plan: VerifyPlan, name: str) -> Measurement:
    """Run the plan on the backend called `name`: as it ships, in the checks without a reference, and with its Relus tapped."""
    backend = capabilities(name)
    audit, note = None, "a compiled graph does not show its Relus: outputs only"
    with closing(load(plan.bundle, name, **plan.options, profile=True)) as session:

        def run(feeds: Feeds) -> Feeds:
            return arrays_of(session.run(feeds))

        outputs, facts = run(plan.feeds), session.facts
        execution = compare_with_request(plan.model, session.executed(), facts.get("providers", [None])[0], plan.autocast)
        skip_batches = "the random numbers were drawn for this batch" if plan.random else ""
        if backend.compiles_in_place:
            skip_batches = "another batch size is another compiled program"
        invariance = run_invariance_checks(plan.bundle, run, plan.feeds, outputs, plan.seed, skip_batches)
        if backend.shows_engine_layers:
            from relu_deploy.verification.engine.audit import audit_session

            audit, note = audit_session(plan.bundle, name, plan.feeds, session)
    if backend.shows_engine_layers or not backend.shows_tensors:
        return Measurement(name, outputs, facts, execution, invariance, audit=audit, note=note)
    relus = [relu for relu in plan.relus if relu.observable and (not backend.runs_program or relu.torch_node)]
    # Integers cannot hold a NaN, so a quantized graph has no policy for it.
    nans = feeds_of_nan(plan.feeds) if plan.precision != "int8" else {}
    tapped = tap_relus(plan, name, relus, outputs, nans)
    kept = nan_is_kept(plan.model, relus, nans, tapped.for_nan)
    return Measurement(name, outputs, facts, execution, invariance, tapped, kept)
