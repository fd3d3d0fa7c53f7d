"""The table of `inspect`: one row a Relu, then the cost of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import MOST_ROWS, count_of, first_names, listed, rest_of
from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_inspect"]

#: nodes without a known cost that are named
NAMED = 8


def print_inspect(result: Mapping[str, Any]) -> None:
    """Print what `inspect --json` writes."""
    table = new_table(">#", "node", "kind", "shape", "scope", "fused with")
    for relu in result["relus"][:MOST_ROWS]:
        table.add_row(
            str(relu["index"]),
            markup(relu["node"]),
            markup(relu["kind"]),
            markup("x".join(map(str, relu["shape"]))) if relu["shape"] is not None else "?",
            markup(relu["scope"]),
            markup(" ← ".join(relu["fused_with"])),
        )
    show(table)
    if rest := rest_of(len(result["relus"])):
        show(f"[dim]{rest}[/]")
    counts = f"{count_of(result['nodes'], 'node')}, {count_of(len(result['relus']), 'Relu')}"
    least = "at least " if result["unknown"] else ""
    sizes = f"{least}{result['flops'] / 1e9:.3f} GFLOP, {least}{result['bytes'] / 1e6:.1f} MB moved unfused"
    if result.get("symbols"):
        sizes = f"operations depend on {markup(listed(result['symbols']))}, set with --shape"
    show(
        f"[bold]{markup(result['model'])}[/]  opset {result['opset']}, {counts}\n"
        f"batch {result['batch']}: {sizes}, {count_of(result['parameters'], 'parameter')}"
    )
    if hidden := [relu["node"] for relu in result["relus"] if not relu.get("observable", True)]:
        names = markup(first_names(hidden))
        show(f"[yellow]{count_of(len(hidden), 'Relu')} inside bodies or functions cannot be observed: {names}[/]")
    if result["unknown"] and not result.get("symbols"):
        show(f"[yellow]not counted, shapes unknown: {markup(', '.join(result['unknown'][:NAMED]))}[/]")
