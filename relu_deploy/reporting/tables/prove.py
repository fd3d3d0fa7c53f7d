"""The table of `prove`: one row a kernel, differences by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.terminal import DIM, markup, new_table, show

__all__ = ["print_prove"]

POLICIES = (("NaN", "nan_policy"), ("zero", "negative_zero_policy"), ("subnormals", "subnormals"))


def print_prove(result: Mapping[str, Any]) -> None:
    """Print what `prove --json` writes."""
    table = new_table("kernel", "where", ">inputs", ">NaN", ">signed zero", ">subnormal", ">value", "for instance")
    for kernel in result["kernels"]:
        table.add_row(*_row(kernel))
    show(
        f"[bold]{result['backend']}[/] {markup(result['version'])}, {result['dtype']}: differences from relu_deploy.relu, bit by bit"
    )
    show(table)
    for finding in result["findings"]:
        show(f"  {markup(finding)}")
    show(", ".join(f"{name}: {markup(result[key])}" for name, key in POLICIES if result[key]))
    verdict = "[green]proven[/]" if result["passed"] else "[bold red]not proven[/]"
    show(f"{verdict}: {result['inputs_tested']:,} bit patterns through Relu in {result['seconds']:.1f} s{_failures(result)}")


def _row(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    if kernel["left_out"]:
        return kernel["kernel"], kernel["where"], DIM, DIM, DIM, DIM, DIM, f"[dim]{markup(kernel['left_out'])}[/]"
    counts = [f"[bold red]{count:,}[/]" if count else "0" for count in kernel["mismatches"].values()]
    first = kernel["examples"][0] if kernel["examples"] else None
    example = markup(f"{first['input']} → {first['got']}, not {first['expected']}") if first else ""
    return kernel["kernel"], kernel["where"], f"{kernel['inputs_tested']:,}", *counts, example


def _failures(result: Mapping[str, Any]) -> str:
    """Return the kinds of difference for which the proof failed, "" where it passed."""
    failures = result["failures"]
    if not failures:
        return ""
    kinds = ", ".join(dict.fromkeys(failure["kind"].replace("_", " ") for failure in failures))
    strictly = " (--strict)" if result["strict"] else ""
    return markup(f"; differs in {kinds}{strictly}, first in {failures[0]['kernel']} {failures[0]['where']}")
