"""The audit of an engine for the terminal, from the same dictionary that --json writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from relu_deploy.reporting.tables import show

__all__ = ["print_audit"]

COLUMNS = ("#", "Relu", "scope", "seen", "at", "own error", "accumulated", "why not")
RIGHT = ("#", "own error", "accumulated")
STATES = {"observed": "[green]observed[/]", "inside": "[green]inside a fusion[/]", "unobserved": "[yellow]unobserved[/]"}


def print_audit(result: Mapping[str, Any]) -> None:
    """Print what `AuditReport.to_json()` holds: one row a Relu, then what the engine as a whole is worth."""
    regions = {region["tensor"]: region for region in result["regions"] if not region["is_copy"]}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in RIGHT else "left", overflow="fold")
    for relu in result["relus"]:
        region = regions.get(relu["at"])
        table.add_row(
            str(relu["index"]),
            escape(relu["node"]),
            escape(relu["scope"]),
            STATES[relu["state"]],
            escape(relu["at"]) or "-",
            _ratio(region["local"] if region else None),
            _ratio(region["accumulated"] if region else None),
            escape(relu["reason"]),
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
        f"{verdict}: {escape(result['model'])} on {result['backend']}, {result['precision']}; of {total} Relus {seen['observed']} observed, "
        f"{seen['inside']} inside a fusion, {seen['unobserved']} unobserved; {len(result['regions'])} regions checked"
    ]
    for fault in result["faults"]:
        among = f" (among {', '.join(fault['region'])})" if len(fault["region"]) > 1 else ""
        lines.append(f"  [bold red]{escape(fault['node'])}[/] {fault['kind']}: {escape(fault['detail'] + among)}")
    for output in result["outputs"]:
        if not output["passed"]:
            lines.append(f"  output [bold red]{escape(output['name'])}[/]: {escape(output['reason'])}")
    if result["as_deployed"]:
        lines.append("[dim]the engine that ships has the same layers, kernels and output bits as the one observed[/]")
        return lines
    for words, names in (
        ("layers that only the engine that ships has", engine["only_shipping"]),
        ("layers that only the observed engine has", engine["only_observed"]),
        ("layers for which another kernel was chosen", engine["other_kernels"]),
    ):
        if names:
            lines.append(f"[yellow]{words}: {len(names)}, first {escape(names[0])}[/]")
    if not engine["same_outputs"]:
        spread = engine["output_spread"]
        apart = "in shape, or by infinity" if spread is None else f"by up to {spread:.3g}"
        lines.append(f"[yellow]outputs of the two engines differ {apart}[/]")
    lines.append("[yellow]so this says less about the engine that ships: only its outputs were checked themselves[/]")
    return lines


def _ratio(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "-"
    ratio = "inf" if verdict["error_ratio"] is None else f"{verdict['error_ratio']:.3g}"
    return ratio if verdict["passed"] else f"[bold red]{ratio}[/]"
