"""The report of `doctor`: it fits 80 columns, and backends with the same problem are listed together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.padding import Padding
from rich.table import Table

from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_doctor"]


def print_doctor(result: Mapping[str, Any]) -> None:
    """Print what `doctor --json` writes: the machine, the usable backends, then each problem once with its fix."""
    _system(result["system"])
    usable = [probe for probe in result["backends"] if probe["usable"]]
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("name", "version", "device"):
        table.add_column(column, overflow="fold")
    for probe in usable:
        table.add_row(f"  [green]{markup(probe['name'])}[/]", markup(probe["version"]), markup(probe["device"]))
    show("[bold]usable here[/]" if usable else "[bold red]no backend is usable here[/]")
    show(table)
    for names, reason, fix in _problems(result["backends"]):
        show("")
        show(f"[yellow]{markup(', '.join(names))}[/]")
        show(Padding(markup(f"not usable: {reason}"), (0, 0, 0, 2), expand=False))
        show(Padding(f"[bold]fix[/]: {markup(fix)}", (0, 0, 0, 2), expand=False))


def _system(system: Mapping[str, Any]) -> None:
    driver = system["driver"]
    if driver is None:
        show(f"[dim]GPU: {markup(system['reason'])}[/]")
    else:
        show(
            f"[dim]NVIDIA driver {markup(driver['version'] or 'of unknown version')}, runs CUDA up to {markup(driver['cuda'])}[/]"
        )
    for gpu in system["gpus"]:
        memory = f", {gpu['memory_bytes'] / 2**30:.0f} GiB" if gpu["memory_bytes"] else ""
        show(f"[dim]GPU {gpu['index']}: {markup(gpu['name'])}, compute capability {markup(gpu['compute_capability'])}{memory}[/]")
    if "threads" in system:
        show(f"[dim]CPU threads of a session: {system['threads']['count']} ({markup(system['threads']['source'])})[/]")
    found = ", ".join(system["libraries"])
    show(f"[dim]CUDA and TensorRT libraries: {markup(found or 'none found')}[/]")
    show("")


def _problems(backends: list[dict[str, Any]]) -> list[tuple[list[str], str, str]]:
    """Return the names that share each (reason, fix), in the order of their first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for probe in backends:
        if not probe["usable"]:
            grouped.setdefault((probe["reason"], probe["fix"]), []).append(probe["name"])
    return [(names, reason, fix) for (reason, fix), names in grouped.items()]
