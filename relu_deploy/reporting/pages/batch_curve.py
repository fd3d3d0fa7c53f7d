"""The curve of throughput over batch sizes: one line a backend, both axes logarithmic, so that a factor of two is one step everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from relu_deploy.reporting.pages.svg import COLORS

__all__ = ["Series", "batch_curve"]

LEFT, TOP, WIDTH, HEIGHT = 64, 12, 400, 240
#: ticks of a decade, from coarse to fine; `_ticks` takes the finest that gives at most eight
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))


class Series:
    """One line of the curve.

    Args:
        name: The backend.
        points: (batch, images a second, 95% interval of that or None).
        color: Index into `COLORS`.
    """

    def __init__(self, name: str, points: Sequence[tuple[int, float, tuple[float, float] | None]], color: int) -> None:
        self.name, self.points, self.color = name, sorted(points, key=lambda point: point[0]), color


def batch_curve(title: str, entries: Sequence[Series]) -> str:
    """Return the chart and its legend as SVG and HTML.

    Args:
        title: Read by screen readers.
        entries: Lines, all of whose values are positive.

    Returns:
        "" where no entry has two points.
    """
    if not any(len(entry.points) > 1 for entry in entries):
        return ""
    batches = sorted({batch for entry in entries for batch, _, _ in entry.points})
    values = [
        value for entry in entries for _, mean, interval in entry.points for value in (mean, *(interval or ())) if value > 0
    ]
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.04, (high - low) * 0.06)
    low, high = low - margin, high + margin
    across = math.log2(batches[-1] / batches[0]) or 1.0

    def x(batch: int) -> float:
        return LEFT + 14 + (WIDTH - 28) * math.log2(batch / batches[0]) / across

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - math.log10(max(value, 10**low))) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {LEFT + WIDTH + 8} {TOP + HEIGHT + 42}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="name soft" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{tick:,.6g}</text>')
    parts += [f'<text class="tick" x="{x(batch):.1f}" y="{TOP + HEIGHT + 16}">{batch}</text>' for batch in batches]
    parts.append(f'<text class="tick" x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 34}">batch; up: images a second</text>')
    for entry in entries:
        parts.append(_line(entry, x, y))
    keys = "".join(
        f'<span><i style="background:{COLORS[entry.color % len(COLORS)]}"></i>{escape(entry.name)}</span>' for entry in entries
    )
    return "".join(parts) + f'</svg><p class="legend">{keys}</p>'


def _line(entry: Series, x: Callable[[int], float], y: Callable[[float], float]) -> str:
    shade = COLORS[entry.color % len(COLORS)]
    path = " ".join(f"{x(batch):.1f},{y(mean):.1f}" for batch, mean, _ in entry.points)
    parts = [f'<polyline fill="none" stroke="{shade}" stroke-width="2" points="{path}"/>']
    for batch, mean, interval in entry.points:
        note = f"{entry.name}, batch {batch}: {mean:,.4g} images a second"
        if interval:
            bottom, top = y(interval[0]), y(interval[1])
            note += f" [{interval[0]:,.4g}, {interval[1]:,.4g}]"
            parts.append(
                f'<path stroke="{shade}" stroke-width="1.5" d="M{x(batch):.1f} {bottom:.1f}V{top:.1f}m-4 0h8M{x(batch) - 4:.1f} {bottom:.1f}h8"/>'
            )
        parts.append(
            f'<circle cx="{x(batch):.1f}" cy="{y(mean):.1f}" r="4" fill="{shade}"><title>{escape(note)}</title></circle>'
        )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return the positions of grid lines between 10**low and 10**high, at most eight where `STEPS` allow it."""
    best: list[float] = []
    for steps in STEPS:
        found = [
            step * 10.0**exponent
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for step in steps
            if 10**low <= step * 10.0**exponent <= 10**high
        ]
        if best and len(found) > 8:
            break
        best = found
    return best
