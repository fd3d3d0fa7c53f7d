"""Small charts as inline SVG: no library, no script, readable in light and dark, on paper and by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["Bar", "bars", "dots"]

#: colours that differ in lightness too, so that they stay apart in grey print and for colour-blind readers (Okabe and Ito, 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


class Bar:
    """One bar: a label, its value, the interval drawn as a whisker, and what a pointer shows."""

    def __init__(self, label: str, value: float, interval: tuple[float, float] | None, colour: int, note: str) -> None:
        self.label, self.value, self.interval, self.colour, self.note = label, value, interval, colour, note


def bars(title: str, unit: str, entries: Sequence[Bar]) -> str:
    """Return a horizontal bar chart that starts at zero. Values are in `unit` and must not be negative."""
    top = max((entry.interval[1] if entry.interval else entry.value for entry in entries), default=1.0) * 1.02 or 1.0
    row, left, width, right = 30, 136, 250, 64
    height = row * len(entries) + 34
    parts = [
        f'<svg viewBox="0 0 {left + width + right} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in _ticks(top):
        x = left + width * tick / top
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 26}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 10}">{tick:g}</text>')
    parts.append(f'<text class="unit" x="{left + width + 12}" y="{height - 10}">{escape(unit)}</text>')
    for index, entry in enumerate(entries):
        y = 8 + index * row
        length = max(1.0, width * entry.value / top)
        parts.append(f"<g><title>{escape(entry.note)}</title>")
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 14}">{escape(entry.label)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 11}" rx="2" fill="{COLOURS[entry.colour % len(COLOURS)]}"/>'
        )
        edge = length
        if entry.interval:
            low, high = (left + width * max(0.0, bound) / top for bound in entry.interval)
            middle = y + (row - 11) / 2
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"/>'
            )
            edge = max(edge, high - left)
        parts.append(f'<text class="value" x="{left + edge + 8:.1f}" y="{y + 14}">{_short(entry.value)}</text></g>')
    parts.append("</svg>")
    return "".join(parts)


def dots(title: str, unit: str, rows: Sequence[tuple[str, Sequence[float], int]]) -> str:
    """Return a strip chart on a logarithmic axis: for each (label, values, colour) a line from first to last value.

    The values are positions of one distribution, smallest first (say minimum, p50, p90, p99, maximum); each is a mark.
    """
    values = [value for _, marks, _ in rows for value in marks if value > 0]
    if not values:
        return ""
    low, high = math.log10(min(values)) - 0.03, math.log10(max(values)) + 0.03
    row, left, width = 30, 136, 270
    height = row * len(rows) + 34

    def at(value: float) -> float:
        return left + width * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {left + width + 44} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for tick in (step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)):
        if 10**low <= tick <= 10**high:
            parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="4" y2="{height - 26}"/>')
            parts.append(f'<text class="tick" x="{at(tick):.1f}" y="{height - 10}">{tick:g}</text>')
    parts.append(f'<text class="unit" x="{left + width + 12}" y="{height - 10}">{escape(unit)}</text>')
    for index, (label, marks, colour) in enumerate(rows):
        y = 8 + index * row + 9
        shade = COLOURS[colour % len(COLOURS)]
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 5}">{escape(label)}</text>')
        parts.append(
            f'<line x1="{at(marks[0]):.1f}" x2="{at(marks[-1]):.1f}" y1="{y}" y2="{y}" stroke="{shade}" stroke-width="2"/>'
        )
        for mark in marks:
            parts.append(
                f'<circle cx="{at(mark):.1f}" cy="{y}" r="4" fill="{shade}"><title>{_short(mark)} {escape(unit)}</title></circle>'
            )
    parts.append("</svg>")
    return "".join(parts)


def _ticks(top: float) -> list[float]:
    step = 10 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if top / size <= 6)
    return [step * index for index in range(int(top / step) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
