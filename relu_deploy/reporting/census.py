"""The census of a model's Relus for the terminal, from the same dictionary that --json writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_census"]

COLUMNS = ("#", "node", "scope", "kind", "channels", "dead", "proven", "always on", "proven", "zeros", "at bound", "greatest")
LEFT = ("node", "scope", "kind")


def print_census(result: Mapping[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for relu in result["relus"]:
        table.add_row(
            str(relu["index"]),
            escape(relu["node"]),
            escape(relu["scope"]),
            relu["kind"],
            f"{relu['channels']:,}",
            _count(relu["dead"], "bold red"),
            _count(relu["proven_dead"], "bold red"),
            _count(relu["always_on"], "yellow"),
            _count(relu["proven_always_on"], "yellow"),
            _share(relu["sparsity"]),
            _share(relu["saturated"]),
            "NaN" if relu["nan_channels"] else "-" if relu["maximum"] is None else f"{relu['maximum']:.3g}",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe or a log has no width of its own: nothing is cut or wrapped there.
        console = Console(highlight=False, width=220)
    if result["relus"]:
        console.print(table)
    for line in _summary(result):
        console.print(line)


def _summary(result: Mapping[str, Any]) -> list[str]:
    totals, declared = result["totals"], result["input_range"]
    lines = [
        f"[bold]{escape(result['model'])}[/] on {totals['samples']:,} rows of {escape(result['data'])}, {result['backend']}: "
        f"{totals['relus']} Relus, {totals['channels']:,} channels, {totals['dead']:,} dead ({totals['proven_dead']:,} proven), "
        f"{totals['always_on']:,} always on ({totals['proven_always_on']:,} proven), {_share(totals['sparsity'])} zeros"
    ]
    bounds = [relu["observed_bound"] for relu in result["relus"] if relu["observed_bound"] is not None]
    if totals["dead"] > totals["proven_dead"] and bounds:
        lines.append(
            f"[dim]dead, not proven: fires on fewer than {bounds[0]:.2%} of such rows (95% confidence, if they are independent)[/]"
        )
    if declared is None:
        lines.append("[dim]proven: for any input at all, as its range is not known; declare it with --range LOW,HIGH[/]")
    else:
        ranges = "; ".join(f"{name} in {_range(bounds)}" for name, bounds in declared["inputs"].items())
        lines.append(f"[dim]proven: for every input with {escape(ranges)} (from: {declared['source']})[/]")
        if declared["rows_outside"]:
            lines.append(f"[yellow]{declared['rows_outside']:,} rows leave that range: nothing is proven about such inputs[/]")
    if totals["left_over"]:
        lines.append(f"[yellow]{totals['left_over']:,} rows were left over: the model takes {result['batch']:,} at a time[/]")
    return lines


def _count(count: int, style: str) -> str:
    return f"[{style}]{count:,}[/]" if count else "0"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _range(bounds: Mapping[str, Any]) -> str:
    return f"{np.min(bounds['low']):.4g} to {np.max(bounds['high']):.4g}"
