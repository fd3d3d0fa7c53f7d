"""The summary of `compile`, and the table of repeated builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_compile"]


def print_compile(result: Mapping[str, Any]) -> None:
    """Print what `compile --json` writes."""
    origin = "found in the cache" if result["cache_hit"] else f"built in {result['build_seconds']:.1f} s"
    device = result["device"] if result["device"] != "default" else "the library's default GPUs"
    show(
        f"[bold]{markup(result['engine'])}[/]  {origin}, {result['bytes'] / 1e6:.2f} MB\n"
        f"  {result['backend']} {markup(result['library'])}, {result['precision']}, for {markup(device)}"
    )
    for profile in result["profiles"]:
        shapes = (f"{name}={','.join('x'.join(map(str, shape)) for shape in sizes)}" for name, sizes in profile.items())
        show(f"  profile {markup(' '.join(shapes))}")
    for line in result["warnings"]:
        show(f"  [yellow]{markup(line)}[/]")
    if result["spread"]:
        _print_builds(result["spread"])


def _print_builds(spread: Mapping[str, Any]) -> None:
    table = new_table(">build", ">built in s", ">p50 ms", ">mean ± 95%", ">error", "verified", "")
    for index, build in enumerate(spread["builds"]):
        latency = build["latency_ms"]
        interval = latency["ci95"]
        table.add_row(
            str(index + 1),
            f"{build['build_seconds']:.1f}",
            f"{latency['p50']:.4g}",
            f"{latency['mean']:.4g}" + (f" ± {(interval[1] - interval[0]) / 2:.2g}" if interval else ""),
            "?" if build["error_ratio"] is None else f"{build['error_ratio']:.3g}",
            "yes" if build["verified"] else "[red]no[/]",
            "kept" if index == spread["best"] else "",
        )
    show(table)
    show(
        f"slowest over fastest {spread['slowest_over_fastest']:.3f}, {spread['distinct_plans']} distinct plans; "
        "error: in units of the precision's own rounding error"
    )
