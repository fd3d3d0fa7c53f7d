"""Single elements of a Relu that a quantizer clips far beyond the noise, where no node is at fault."""

from __future__ import annotations

from dataclasses import replace

from relu_deploy.verification.report import BackendReport, ReluReport

__all__ = ["accept_clipped_elements"]

#: precisions whose quantizers clip what is beyond their range
CLIPPING = ("float8", "int8")


def accept_clipped_elements(report: BackendReport, precision: str) -> BackendReport:
    """Return `report` passed where nothing fails but single elements of Relus, and no node of the graph or the backend does alone.

    A range that was calibrated on other data clips a few numbers, and the elements behind these may be zero where the truth is not:
    their error has no place in the noise of all others.

    Args:
        report: With the nodes at fault.
        precision: Of the graph.
    """
    if report.passed or precision not in CLIPPING or any(fault.kind != "accumulated" for fault in report.faults):
        return report
    relus = [_accepting(one) for one in report.relus]
    accepted = replace(report, relus=relus, faults=())
    if not accepted.passed:
        return report
    count = sum(one.contract.mask_errors or 0 for one in relus if one.contract is not None and one.contract.accepts_masks)
    noun, verb = ("element", "is") if count == 1 else ("elements", "are")
    note = f"{count} {noun} of Relus {verb} zero where the truth is not, or the other way round: a quantizer clips there, no node is at fault"
    return replace(accepted, note="; ".join(filter(None, [report.note, note])))


def _accepting(report: ReluReport) -> ReluReport:
    if report.passed is not False or report.contract is None or report.comparison is None or not report.comparison.passed:
        return report
    return replace(report, contract=replace(report.contract, accepts_masks=True))
