"""The table of `bench --layers`: the Relu segments that take longest, in the order of the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.terminal import DIM, markup, new_table, number, show

__all__ = ["print_layers"]

Result = Mapping[str, Any]
#: segments in the table; the others are summed in its last row
LISTED = 20


def print_layers(runs: Sequence[Result]) -> None:
    """Print the times of layers of each run that has them, and why the others have none."""
    for run in runs:
        if not run.get("layers"):
            continue
        name = markup(f"{run['model']} {run['backend']} {run['variant']}".rstrip() + f", batch {run['batch']}")
        if "not_measured" in run["layers"]:
            show(f"[dim]layers of {name}: not measured: {markup(run['layers']['not_measured'])}[/]")
        else:
            _print_run(name, run["layers"])


def _print_run(name: str, layers: Result) -> None:
    total = layers["layers_ms"] or 1.0
    show(
        f"[bold]{name}[/]: layers {number(layers['layers_ms'])} ms of {number(layers['call_ms'])} ms a call, "
        f"mean of {count_of(layers['runs'], 'run')} while profiling"
    )
    table = new_table(
        "Relu segment", "kernels", ">ms", ">share", ">GFLOP/s", ">FLOP/byte", ">limit ms", ">of limit", "limited by"
    )
    segments = [segment for segment in layers["segments"] if segment["layers"]]
    longest = sorted(segments, key=lambda segment: -segment["milliseconds"])[:LISTED]
    for segment in segments:
        if segment in longest:
            table.add_row(*_cells(segment, total))
    rest = [segment for segment in segments if segment not in longest]
    for label, found in ((f"{len(rest)} other segments", rest), ("added by the runtime", layers["added"])):
        if found:
            milliseconds = sum(one["milliseconds"] for one in found)
            kernels = _kernels(found) if label.startswith("added") else ""
            table.add_row(f"[dim]{label}[/]", kernels, number(milliseconds), f"{milliseconds / total:.1%}", *[DIM] * 5)
    show(table)
    show("[dim]limit: the longer of FLOPs at the measured float32 rate and bytes at the measured copy rate of main memory[/]")


def _cells(segment: Result, total: float) -> tuple[str, ...]:
    flops, size, share = segment["flops"], segment["bytes"], segment["share"]
    return (
        markup(segment["relu"] or "behind the last Relu"),
        _kernels(segment["layers"]),
        number(segment["milliseconds"]),
        f"{segment['milliseconds'] / total:.1%}",
        number(segment["gflops_per_s"]),
        number(flops / size) if flops is not None and size else DIM,
        number(segment["limit_ms"]),
        DIM if share is None else f"{share:.0%}",
        segment["limited_by"] or DIM,
    )


def _kernels(layers: Sequence[Result]) -> str:
    counted = Counter(layer["kernel"] for layer in layers)
    return markup(", ".join(kernel if count == 1 else f"{count} {kernel}" for kernel, count in counted.items()))
