"""The table of GPU measurements in each row of a benchmark: execution time, launch time, copies, clocks, energy."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["device_cells", "device_table"]

HEAD = (
    *("backend", "GPU ms a run", "images/s", "of limit", "alone p50", "alone p99", "launch", "to the GPU", "from it"),
    *("SM clock MHz", "W", "mJ/image", "GPU MB", "CUDA graph"),
)


def device_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the HTML table.

    Args:
        rows: Runs of `bench --json` by name.

    Returns:
        "" where no row ran on a GPU.
    """
    if not any(row.get("device") for row in rows.values()):
        return ""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in HEAD) + "</tr>"]
    for name, row in rows.items():
        device = row.get("device")
        if not device:
            continue
        if "run_ms" not in device:
            lines.append(f'<tr><td>{escape(name)}</td><td colspan="{len(HEAD) - 1}">{escape(device["not_measured"])}</td></tr>')
            continue
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (name, *device_cells(row)))
        lines.append(f"<tr>{cells}</tr>")
    note = (
        '<p class="soft">GPU ms: in a queue that is never empty, by CUDA events; alone: one run and the wait for it, data on the GPU; '
        "launch: the host's part of that. ! : the host cannot launch as fast as the GPU runs, so the figure is the time of launching.</p>"
    )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>{note}'


def device_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells behind the name for a run of `bench --json` whose GPU time was measured, as plain text."""
    device = row["device"]
    run, clocks, energy = device["run_ms"], device.get("clocks"), device.get("energy_mj_per_image")
    interval = f" ± {(run['ci95'][1] - run['ci95'][0]) / 2:.2g}" if run["ci95"] else ""
    roofline = row["roofline"]
    return [
        f"{run['mean']:.4g}{interval}" + (" !" if device["launch_bound"] else ""),
        f"{device['throughput']:,.1f}",
        f"{roofline['share']:.0%} ({roofline['bound']})" if roofline else "",
        f"{device['single_ms']['p50']:.4g}",
        f"{device['single_ms']['p99']:.4g}",
        f"{device['enqueue_ms']['p50']:.3g}",
        f"{device['upload_ms']['p50']:.3g}",
        f"{device['download_ms']['p50']:.3g}",
        _clocks(clocks, device.get("clocks_not_seen", "")),
        f"{device['power_w']['mean']:.0f}" if device.get("power_w") else "",
        f"{energy:.3g}" if energy is not None else "",
        f"{device['memory_bytes'] / 1e6:,.0f}" if device.get("memory_bytes") else "",
        str(row["facts"].get("cuda_graph", "")),
    ]


def _clocks(clocks: Mapping[str, Any] | None, why: str) -> str:
    if clocks is None:
        return why or "not read"
    at = str(clocks["max"]) if clocks["min"] == clocks["max"] else f"{clocks['min']} to {clocks['max']}"
    return (
        at if clocks["steady"] else f"{at}, not steady" + (f": {', '.join(clocks['throttled'])}" if clocks["throttled"] else "")
    )
