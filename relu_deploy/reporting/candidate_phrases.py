"""Phrases about the candidates of `optimize --precision auto` that the terminal and its page share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import count_of

__all__ = ["goal_of", "kernels_of", "label_of", "time_of"]

Result = Mapping[str, Any]


def label_of(candidate: Result) -> str:
    """Return the backend, the precision and the settings of a candidate, such as "openvino int8, threads 1"."""
    shown = {True: "on", False: "off"}
    # The precision says what the runtime casts to.
    settings = [
        f"{name} {shown[value] if isinstance(value, bool) else value}"
        for name, value in candidate["settings"].items()
        if name != "autocast"
    ]
    return ", ".join([f"{candidate['backend']} {candidate['precision']}".strip(), *settings])


def time_of(candidate: Result, auto: Result) -> str:
    """Return the median time of a run, or the rows per second of such runs, with the unit; "" if it was not timed."""
    if candidate["latency_ms"] is None:
        return ""
    milliseconds = candidate["latency_ms"]["p50"]
    return f"{auto['batch'] * 1e3 / milliseconds:.4g} rows/s" if auto["minimize"] == "throughput" else f"{milliseconds:.4g} ms"


def kernels_of(candidate: Result) -> str:
    """Return how many kernels computed in 8 bits or in half precision, and how many only converted; "" if that is unknown."""
    kernels = candidate["kernels"]
    if kernels is None or not kernels["computing"]:
        return ""
    computing = kernels["computing"]
    narrow = {name: count for name, count in computing.items() if name not in ("float32", "float64")}
    total, conversions = sum(computing.values()), kernels["converting"]
    counted = ", ".join(f"{count} of {total} in {name}" for name, count in narrow.items()) or f"{total} in float32"
    return f"{counted}, {count_of(conversions, 'conversion')}"


def goal_of(auto: Result) -> str:
    """Return what the candidates were compared by."""
    rows, threads = count_of(auto["batch"], "row"), count_of(auto["threads"], "thread")
    measure = "the time of a run" if auto["minimize"] == "latency" else "rows per second in runs"
    return f"{measure} with {rows}, on {threads} unless another number is given"
