"""The summary of `export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import count_of, listed, verdict_phrase
from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_export"]


def print_export(result: Mapping[str, Any]) -> None:
    """Print the bundle, its size and its inputs and outputs from what `export --json` writes."""
    nodes, relus = count_of(result["nodes"], "node"), count_of(result["relus"], "Relu")
    show(f"[bold]{markup(result['bundle'])}[/]  opset {result['opset']}, {nodes}, {relus}, {result['seconds']:.1f} s")
    for label, kind in (("in ", "inputs"), ("out", "outputs")):
        show(f"  {label}  {markup(listed([_spec(spec) for spec in result[kind]]))}")
    if verdict := result.get("program_verdict"):
        shown = markup(verdict_phrase(verdict))
        show(f"  {shown}" if verdict["passed"] else f"  [bold red]{shown}[/]")


def _spec(spec: Mapping[str, Any]) -> str:
    return f"{spec['name']}: {spec['dtype']}[{'x'.join(map(str, spec['shape']))}]"
