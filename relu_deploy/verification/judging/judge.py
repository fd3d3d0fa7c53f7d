"""The verdict on a backend, from what it returned and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relu_deploy.graph import Relu
from relu_deploy.tensors import Array
from relu_deploy.verification.engine.audit import AuditReport
from relu_deploy.verification.judging.contract import NAN_NOT_PROPAGATED, check_contract
from relu_deploy.verification.judging.invariants import check_invariance
from relu_deploy.verification.judging.row_lists import compare_lists, list_distance
from relu_deploy.verification.judging.stacked_verdicts import stacked_verdicts
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, Comparison, rms
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.measurement import Measurement
from relu_deploy.verification.plan import VerifyPlan
from relu_deploy.verification.report import BackendReport, ReluReport
from relu_deploy.verification.tapping import TappedRelus
from relu_deploy.verification.truth import Truth

__all__ = ["compare_outputs", "judge"]


#: Relus that a note names
NAMED = 3


@dataclass(frozen=True)
class _ReluVerdicts:
    """The verdicts on the Relus of a backend; the fields are those of `BackendReport`."""

    relus: Sequence[ReluReport] = ()
    as_deployed: bool | None = None
    note: str = ""
    faults: Sequence[Fault] = ()


def judge(plan: VerifyPlan, truth: Truth, measured: Measurement) -> BackendReport:
    """Return the report on a backend, without the faults that still have to be located."""
    checks = check_invariance(measured.invariance, truth.noise_floor, truth.values, truth.precision)
    if measured.audit is not None:
        verdicts = _from_audit(measured.audit)
    elif measured.tapped is not None:
        verdicts = _from_taps(plan, truth, measured.tapped, measured.nan_kept)
    else:
        verdicts = _ReluVerdicts(note=measured.note)
    outputs = compare_outputs(measured.outputs, truth)
    notes = [verdicts.note, _not_observed(plan.hidden), *_other_lengths(measured.outputs, truth, outputs)]
    notes += _left_out(truth, outputs)
    return BackendReport(
        name=measured.name,
        outputs=outputs,
        relus=verdicts.relus,
        as_deployed=verdicts.as_deployed,
        facts=measured.facts,
        faults=verdicts.faults,
        checks=checks,
        execution=measured.execution,
        note="; ".join(filter(None, notes)),
        audit=measured.audit,
    )


def compare_outputs(results: Mapping[str, Any], truth: Truth) -> dict[str, Comparison]:
    """Return the verdict on each output in `results` (by name) that the truth has."""
    return {name: _compare_output(name, np.asarray(value), truth) for name, value in results.items() if name in truth.values}


def _other_lengths(results: Mapping[str, Any], truth: Truth, verdicts: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield a note for each output that passes with another shape than the truth's."""
    for name, verdict in verdicts.items():
        shapes = np.shape(results[name]), truth.values[name].shape
        if verdict.passed and shapes[0] != shapes[1]:
            yield (
                f"output {name} has the shape {shapes[0]} instead of {shapes[1]}: which rows the graph selects depends on rounding, "
                "and each was compared with its nearest row"
            )


def _left_out(truth: Truth, verdicts: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield a note for each output with numbers that do not count because a sum before them may overflow."""
    for name, verdict in verdicts.items():
        if verdict.left_out:
            yield (
                f"output {name}: {verdict.left_out:,} of {truth.values[name].size:,} numbers are not compared: the terms of a sum exceed "
                "float32, and whether it overflows depends on their order"
            )


def _compare_output(name: str, value: Any, truth: Truth) -> Comparison:
    true, limit = truth.values[name], LIMITS[truth.precision]
    listed = compare_lists(value, true, truth.list_noise[name], limit) if name in truth.list_noise else None
    return listed or truth.compare(name, value)


def _has_other_order(name: str, value: Array, truth: Truth) -> bool:
    """Return whether the rows of a tensor behind a decision are much nearer to other rows of the truth than to those in their place."""
    true = truth.values[name]
    if name not in truth.list_noise or value.shape != true.shape:
        return False
    distance = list_distance(value, true)
    return distance is not None and distance < rms(value.astype(np.float64) - true) / 2


def _from_taps(plan: VerifyPlan, truth: Truth, tapped: TappedRelus, nan_kept: Mapping[str, bool | None]) -> _ReluVerdicts:
    """Return the verdicts on Relus whose outputs a session returned beside its own."""
    accepts_lost_nan = NAN_NOT_PROPAGATED in plan.accepted
    many = stacked_verdicts(plan.relus, tapped.values, truth, nan_kept, accepts_lost_nan)

    def report_on(relu: Relu) -> ReluReport:
        got, true = tapped.values.get(relu.output), truth.values.get(relu.output)
        if got is None or (relu.body and not got.size):
            return ReluReport(relu, None)
        noise = truth.noise_floor.get(relu.output, 0.0)
        single = truth.single.get(relu.output, SINGLE * noise)
        # Rows in another order are zero in other places.
        in_place = None if true is None or _has_other_order(relu.output, got, truth) else true
        contract = check_contract(relu, got, in_place, single, truth.precision, nan_kept.get(relu.output))
        contract = replace(contract, accepts_lost_nan=accepts_lost_nan)
        comparison = None if true is None else _compare_output(relu.output, got, truth)
        return ReluReport(relu, comparison, contract, relu.output in tapped.as_deployed)

    # NumPy compares arrays without holding the interpreter's lock.
    with ThreadPoolExecutor(2) as pool:
        alone = pool.map(report_on, [relu for relu in plan.relus if relu.output not in many])
        reports = [
            ReluReport(relu, *many[relu.output], relu.output in tapped.as_deployed) if relu.output in many else next(alone)
            for relu in plan.relus
        ]
    idle = sum(report.relu.body != "" and report.comparison is None for report in reports)
    missing = sum(report.comparison is None for report in reports) - idle
    notes = []
    if missing:
        notes.append(f"{_relus(missing, reports)} no counterpart to compare with")
    if idle:
        notes.append(f"{_relus(idle, reports)} not run on this input: in a branch that was not taken")
    if tapped.sessions > 1:
        notes.append(f"tapping all Relus at once changed the outputs: they were spread over {tapped.sessions} sessions")
    if tapped.together:
        notes.append(f"smaller groups changed the outputs as well, so {len(tapped.together)} Relus were not tapped one by one")
    return _ReluVerdicts(reports, len(tapped.as_deployed) == len(tapped.values), "; ".join(notes))


def _not_observed(names: Sequence[str]) -> str:
    """Return the note on the Relus `names`, which no backend can show; "" for none."""
    if not names:
        return ""
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    noun = "1 further Relu has" if len(names) == 1 else f"{len(names)} further Relus have"
    return f"{noun} not been observed: inside a body that cannot show its tensors ({listed})"


def _relus(count: int, reports: Sequence[ReluReport]) -> str:
    return f"{count} of {len(reports)} Relus {'has' if count == 1 else 'have'}"


def _from_audit(audit: AuditReport) -> _ReluVerdicts:
    """Return the verdicts on the Relus of an engine, at the tensors where it showed them; the faults are those of its fusions."""
    comparisons = {report.region.tensor: report.accumulated for report in audit.regions if not report.region.is_copy}
    relus = [
        ReluReport(
            relu=one.relu,
            comparison=comparisons.get(one.at),
            contract=audit.contracts.get(one.at),
            as_deployed=audit.as_deployed and bool(one.at),
            coverage=one.state,
            coverage_reason=one.reason,
        )
        for one in audit.relus
    ]
    counts = ", ".join(f"{count} {state}" for state, count in audit.coverage.items() if count)
    note = f"Relus of the engine: {counts}" + (
        "" if audit.as_deployed else "; the observed engine is not the one that ships: see audit"
    )
    return _ReluVerdicts(relus, audit.as_deployed, note, tuple(audit.faults))
