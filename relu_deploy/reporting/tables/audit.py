"""The table of an engine's audit: one row a Relu, then the verdict on the engine as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_audit"]

COLUMNS = (">#", "Relu", "scope", "seen", "at", ">own error", ">accumulated", "why not")
STATES = {"observed": "[green]observed[/]", "inside": "[green]inside a fusion[/]", "unobserved": "[yellow]unobserved[/]"}


def print_audit(result: Mapping[str, Any]) -> None:
    """Print what `AuditReport.to_json()` returns."""
    regions = {region["tensor"]: region for region in result["regions"] if not region["is_copy"]}
    table = new_table(*COLUMNS)
    for relu in result["relus"]:
        region = regions.get(relu["at"])
        table.add_row(
            str(relu["index"]),
            markup(relu["node"]),
            markup(relu["scope"]),
            STATES[relu["state"]],
            markup(relu["at"]) or "-",
            _ratio(region["local"] if region else None),
            _ratio(region["accumulated"] if region else None),
            markup(relu["reason"]),
        )
    if result["relus"]:
        show(table)
    for line in _summary(result):
        show(line)


def _summary(result: Mapping[str, Any]) -> list[str]:
    seen, engine = result["coverage"], result["engine"]
    total = sum(seen.values())
    verdict = "[green]passed[/]" if result["passed"] else "[bold red]failed[/]"
    lines = [
        f"{verdict}: {markup(result['model'])} on {markup(result['backend'])}, {result['precision']}; of {count_of(total, 'Relu')} "
        f"{seen['observed']} observed, {seen['inside']} inside a fusion, {seen['unobserved']} unobserved; {count_of(len(result['regions']), 'region')} checked"
    ]
    for fault in result["faults"]:
        among = f" (among {', '.join(fault['region'])})" if len(fault["region"]) > 1 else ""
        lines.append(f"  [bold red]{markup(fault['node'])}[/] {markup(fault['kind'])}: {markup(fault['detail'] + among)}")
    for output in result["outputs"]:
        if not output["passed"]:
            lines.append(f"  output [bold red]{markup(output['name'])}[/]: {markup(output['reason'])}")
    if result["as_deployed"]:
        lines.append("[dim]the deployed engine has the same layers, kernels and output bits as the observed one[/]")
        return lines
    for description, names in (
        ("layers that only the deployed engine has", engine["only_shipping"]),
        ("layers that only the observed engine has", engine["only_observed"]),
        ("layers for which another kernel was chosen", engine["other_kernels"]),
    ):
        if names:
            lines.append(f"[yellow]{description}: {len(names)}, first {markup(names[0])}[/]")
    if not engine["same_outputs"]:
        spread = engine["output_spread"]
        apart = "in shape, or by infinity" if spread is None else f"by up to {spread:.3g}"
        lines.append(f"[yellow]outputs of the two engines differ {apart}[/]")
    lines.append("[yellow]so of the deployed engine only the outputs were checked directly[/]")
    return lines


def _ratio(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "-"
    ratio = "inf" if verdict["error_ratio"] is None else f"{verdict['error_ratio']:.3g}"
    return ratio if verdict["passed"] else f"[bold red]{ratio}[/]"
