"""The summary of `optimize`: size, speed, accuracy, verification, and what stayed in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.optimize_phrases import (
    accuracy_of,
    confidence_of,
    preparation_of,
    runtime_of,
    size_of,
    speed_of,
    verification_of,
)
from relu_deploy.reporting.tables.candidates import print_candidates
from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_optimize"]

Result = Mapping[str, Any]
#: nodes in float32 that are listed
LISTED = 8


def print_optimize(result: Result) -> None:
    """Print what `optimize --json` writes."""
    verdict = "[green]stored[/]" if result["passed"] else "[bold red]not stored[/]"
    file = f" as {markup(result['file'])}" if result["file"] else ""
    slower = f": [bold yellow]slower than float32 ({result['speedup']:.2f}x)[/]" if result.get("slower") else ""
    show(
        f"[bold]{markup(result['model'])}[/] {result['precision']} for {result['target']}: {verdict}{file}, "
        f"{result['seconds']:.1f} s{slower}"
    )
    show(f"  {markup(accuracy_of(result))}")
    if result.get("confidence") is not None:
        show(f"  {markup(confidence_of(result))}")
    show(f"  {markup(f'{size_of(result)}; {speed_of(result)}')}")
    show(f"  {markup(verification_of(result))}")
    if result.get("backend") and result["passed"]:
        show(f"  runs on {markup(runtime_of(result))}")
    if result.get("remedy"):
        show(f"  hint: {markup(result['remedy'])}")
    for line in preparation_of(result):
        show(f"  {markup(line)}")
    _print_search(result)
    fallbacks = result["fallbacks"]
    for node in fallbacks[:LISTED]:
        show(f"  [dim]float32: {markup(node['node'])} ({markup(node['operator'])}): {markup(node['reason'])}[/]")
    if len(fallbacks) > LISTED:
        show(f"  [dim]and {len(fallbacks) - LISTED} more, in the JSON[/]")


def _print_search(result: Result) -> None:
    """Print the precisions that were tried, and the accuracy for each number of segments in float32."""
    if result.get("auto"):
        print_candidates(result["auto"])
    for candidate in result["tried"] if len(result["tried"]) > 1 and not result.get("auto") else ():
        speed = "" if candidate["speedup"] is None else f", {candidate['speedup']:.2f}x"
        verdict = "passes" if candidate["passed"] else "misses the gate"
        show(f"  tried {candidate['precision']}: {verdict} with {candidate['value']:.4f}{speed}")
    if len(result["curve"]) > 1:
        steps = ", ".join(f"{step['float_segments']} → {step['value']:.4f}" for step in result["curve"])
        show(f"  segments in float32 → {markup(result['accuracy']['metric'])}: {steps}")
