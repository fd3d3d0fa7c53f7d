"""What `doctor` found, for the terminal: it fits 80 columns, and backends that want the same thing fixed stand together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from relu_deploy.reporting.tables import show

__all__ = ["print_doctor"]


def print_doctor(result: Mapping[str, Any]) -> None:
    """Print the machine, the usable backends, then each obstacle once with what to do about it."""
    _system(result["system"])
    usable = [probe for probe in result["backends"] if probe["usable"]]
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("name", "version", "device"):
        table.add_column(column, overflow="fold")
    for probe in usable:
        table.add_row(f"  [green]{escape(probe['name'])}[/]", escape(probe["version"]), escape(probe["device"]))
    show("[bold]usable here[/]" if usable else "[bold red]no backend is usable here[/]")
    show(table)
    for names, reason, fix in _obstacles(result["backends"]):
        show("")
        show(f"[yellow]{escape(', '.join(names))}[/]")
        show(Padding(escape(f"not usable: {reason}"), (0, 0, 0, 2), expand=False))
        show(Padding(f"[bold]fix[/]: {escape(fix)}", (0, 0, 0, 2), expand=False))


def _system(system: Mapping[str, Any]) -> None:
    driver = system["driver"]
    if driver is None:
        show(f"[dim]GPU: {escape(system['reason'])}[/]")
    else:
        show(f"[dim]NVIDIA driver {escape(driver['version'] or 'of unknown version')}, runs CUDA up to {driver['cuda']}[/]")
    for gpu in system["gpus"]:
        memory = f", {gpu['memory_bytes'] / 2**30:.0f} GiB" if gpu["memory_bytes"] else ""
        show(f"[dim]GPU {gpu['index']}: {escape(gpu['name'])}, compute capability {gpu['compute_capability']}{memory}[/]")
    found = ", ".join(system["libraries"])
    show(f"[dim]CUDA and TensorRT libraries: {escape(found or 'none found')}[/]")
    show("")


def _obstacles(backends: list[dict[str, Any]]) -> list[tuple[list[str], str, str]]:
    """Return the names that share each (reason, fix), in the order of their first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for probe in backends:
        if not probe["usable"]:
            grouped.setdefault((probe["reason"], probe["fix"]), []).append(probe["name"])
    return [(names, reason, fix) for (reason, fix), names in grouped.items()]
