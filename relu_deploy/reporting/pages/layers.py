"""The section of the page of `bench --layers`: a bar for each Relu segment, and the segments on the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from relu_deploy.reporting.pages.svg import COLORS

__all__ = ["layers_section", "roofline", "segment_bars"]

Result = Mapping[str, Any]
LEFT, TOP, WIDTH, HEIGHT = 64, 12, 400, 260
#: names longer than this are cut at their front
LONGEST_NAME = 40


def layers_section(row: Result, limits: Result | None) -> str:
    """Return the charts of one run, "" if it has no times of layers.

    Args:
        row: An entry of `runs`.
        limits: The field `limits` of the environment.
    """
    layers = row.get("layers")
    if not layers:
        return ""
    name = escape(f"{row['backend']} {row['variant']}".rstrip())
    if "not_measured" in layers:
        return f'<p class="soft">Layers of {name}: not measured: {escape(layers["not_measured"])}</p>'
    model, segments = row["model"], [segment for segment in layers["segments"] if segment["layers"]]
    added = sum(layer["milliseconds"] for layer in layers["added"])
    figures = [
        f"<figure><figcaption>Time of each Relu segment on {name}; the mark is the limit of the machine</figcaption>"
        f"{segment_bars(f'Time of each Relu segment of {model}', segments)}</figure>"
    ]
    if limits and any(segment["limit_ms"] for segment in segments):
        figures.append(
            f"<figure><figcaption>The segments of {name} on the roofline; area: share of the time</figcaption>"
            f"{roofline(f'Roofline of {model}', segments, limits)}</figure>"
        )
    return (
        f'<p class="soft">Layers of {name}: {layers["layers_ms"]:.4g} ms of {layers["call_ms"]:.4g} ms a call while profiling, mean of '
        f"{layers['runs']} runs; {added:.3g} ms in {len(layers['added'])} layers that the runtime added. A segment holds the nodes that a "
        "Relu needs and no earlier Relu does. Limit: the longer of its FLOPs at the measured float32 rate and its bytes at the measured "
        f'copy rate of main memory.</p><div class="charts">{"".join(figures)}</div>'
    )


def segment_bars(title: str, segments: Sequence[Result]) -> str:
    """Return a horizontal bar for each segment, in the order of the graph, with a mark at its limit."""
    top = max((max(one["milliseconds"], one["limit_ms"] or 0.0) for one in segments), default=0.0) * 1.02 or 1.0
    labels = [_label(segment) for segment in segments]
    row, left, width, right = 20, max([120, *(round(6.4 * len(label)) + 18 for label in labels)]), 260, 60
    height = row * len(segments) + 30
    parts = [
        f'<svg viewBox="0 0 {left + width + right} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for index, (segment, label) in enumerate(zip(segments, labels, strict=True)):
        y, time, limit = 6 + index * row, segment["milliseconds"], segment["limit_ms"]
        share = "" if segment["share"] is None else f", {segment['share']:.0%} of the {segment['limited_by']} limit"
        kernels = ", ".join(layer["kernel"] for layer in segment["layers"])
        parts.append(f"<g><title>{escape(f'{label}: {time:.4g} ms{share}: {kernels}')}</title>")
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 11}">{escape(label)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(1.0, width * time / top):.1f}" height="{row - 6}" rx="2" fill="{COLORS[0]}"/>'
        )
        edge = width * time / top
        if limit:
            at = left + width * limit / top
            parts.append(f'<path d="M{at:.1f} {y - 2}v{row - 2}" stroke="{COLORS[1]}" stroke-width="3"/>')
            edge = max(edge, at - left)
        parts.append(f'<text class="unit" x="{left + edge + 8:.1f}" y="{y + 11}">{time:.3g} ms</text></g>')
    parts.append("</svg>")
    return "".join(parts)


def roofline(title: str, segments: Sequence[Result], limits: Result) -> str:
    """Return the rate of each segment over its operational intensity, under the measured rates of the machine, both logarithmic.

    Args:
        title: Read by screen readers.
        segments: Entries of `segments`; those without operations or bytes are left out.
        limits: float32_gflops and copy_gb_per_s.
    """
    points = [
        (one["flops"] / one["bytes"], one["gflops_per_s"], one)
        for one in segments
        if one["flops"] and one["bytes"] and one["gflops_per_s"]
    ]
    if not points:
        return ""
    compute, memory = limits["float32_gflops"], limits["copy_gb_per_s"]
    ridge = compute / memory
    x = _Axis(min(ridge, *(point[0] for point in points)) / 2, max(ridge, *(point[0] for point in points)) * 2, LEFT, WIDTH)
    y = _Axis(min(point[1] for point in points) / 2, max(compute, *(point[1] for point in points)) * 2, TOP + HEIGHT, -HEIGHT)
    start = max(x.low, y.low / memory)
    parts = [
        f'<svg viewBox="0 0 {LEFT + WIDTH + 8} {TOP + HEIGHT + 42}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for tick in x.decades():
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{TOP + HEIGHT + 16}">{tick:g}</text>')
    for tick in y.decades():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="name soft" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{tick:g}</text>')
    roof = f"{x(start):.1f},{y(start * memory):.1f} {x(ridge):.1f},{y(compute):.1f} {x(x.high):.1f},{y(compute):.1f}"
    parts.append(f'<polyline class="limit" points="{roof}"><title>{compute:g} GFLOP/s, {memory:g} GB/s</title></polyline>')
    total = sum(one["milliseconds"] for one in segments) or 1.0
    for intensity, rate, one in points:
        radius = max(2.5, 34 * math.sqrt(one["milliseconds"] / total / math.pi))
        note = f"{_label(one)}: {rate:.3g} GFLOP/s at {intensity:.3g} FLOP/byte, {one['milliseconds']:.3g} ms"
        parts.append(
            f'<circle cx="{x(intensity):.1f}" cy="{y(rate):.1f}" r="{radius:.1f}" fill="{COLORS[0]}" fill-opacity="0.55">'
            f"<title>{escape(note)}</title></circle>"
        )
    parts.append(f'<text class="tick" x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 34}">FLOP/byte; up: GFLOP/s</text></svg>')
    return "".join(parts)


class _Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` over `length`, which is negative for an axis upward."""

    def __init__(self, low: float, high: float, start: float, length: float) -> None:
        self.low, self.high, self._start, self._length = low, high, start, length

    def __call__(self, value: float) -> float:
        return self._start + self._length * math.log10(value / self.low) / math.log10(self.high / self.low)

    def decades(self) -> list[float]:
        """Return the powers of ten on the axis."""
        return [10.0**power for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]


def _label(segment: Result) -> str:
    name = segment["relu"] or "behind the last Relu"
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
