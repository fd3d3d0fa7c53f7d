"""The candidates of `optimize --precision auto`, one line each, those that were only eliminated last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.candidate_phrases import goal_of, label_of, time_of
from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_candidates"]

Result = Mapping[str, Any]


def print_candidates(auto: Result) -> None:
    """Print the field `auto` of what `optimize --json` writes."""
    show(f"  [dim]{markup(goal_of(auto))}[/]")
    table = new_table("candidate", ">p50", "speed", "outcome", "reason")
    for one in auto["candidates"]:
        style = {"chosen": "green", "failed": "yellow", "unusable": "yellow"}.get(
            one["outcome"], "dim" if one["outcome"] == "eliminated" else ""
        )
        outcome = f"[{style}]{one['outcome']}[/]" if style else one["outcome"]
        reason = "" if one["outcome"] in ("chosen", "passed", "eliminated") else one["reason"]
        table.add_row(markup(label_of(one)), time_of(one, auto), _speed(one), outcome, markup(reason))
    show(table)
    for name, reason in auto["unusable"].items():
        show(f"  [dim]not usable here: {markup(name)}: {markup(reason)}[/]")


def _speed(one: Result) -> str:
    if one["speedup"] is None:
        return "-"
    interval = one["speedup_ci95"]
    return markup(f"{one['speedup']:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
