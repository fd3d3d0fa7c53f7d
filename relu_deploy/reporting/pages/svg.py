"""Small charts as inline SVG: no library, no script, readable in light and dark mode, in print and by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

__all__ = ["Bar", "Column", "Line", "Point", "bars", "columns", "curve", "dots", "lines"]

#: colors that differ in lightness too, for gray print and color-blind readers (Okabe and Ito, 2008)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


class Bar:
    """One bar of `bars`.

    Args:
        label: Text on its left.
        value: Its length, not negative.
        interval: Drawn as a whisker.
        color: Index into `COLORS`.
        note: Shown under the pointer.
    """

    def __init__(self, label: str, value: float, interval: tuple[float, float] | None, color: int, note: str) -> None:
        self.label, self.value, self.interval, self.color, self.note = label, value, interval, color, note


def bars(title: str, unit: str, entries: Sequence[Bar]) -> str:
    """Return a horizontal bar chart that starts at zero, with values in `unit`."""
    top = max((entry.interval[1] if entry.interval else entry.value for entry in entries), default=1.0) * 1.02 or 1.0
    row, left, width, right = 30, max([136, *(round(7.4 * len(entry.label)) + 18 for entry in entries)]), 250, 64
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
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 11}" rx="2" fill="{COLORS[entry.color % len(COLORS)]}"/>'
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
    """Return a strip chart on a logarithmic axis, one line with marks a row.

    Args:
        title: Read by screen readers.
        unit: Of the values.
        rows: (label, values, color); the values are quantiles of one distribution, smallest first.

    Returns:
        "" where no value is positive.
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
    for index, (label, marks, color) in enumerate(rows):
        y = 8 + index * row + 9
        shade = COLORS[color % len(COLORS)]
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


class Line:
    """One line of `lines`.

    Args:
        name: In the legend.
        values: One a position, None where there is none.
        color: Index into `COLORS`.
        guide: "guide" or "limit" for a line that is drawn dashed, as a reference.
    """

    def __init__(self, name: str, values: Sequence[float | None], color: int, guide: str = "") -> None:
        self.name, self.values, self.color, self.guide = name, values, color, guide


def lines(title: str, across: str, entries: Sequence[Line], notes: Sequence[str], marked: int | None = None) -> str:
    """Return a line chart with a logarithmic vertical axis and positions 0, 1, … from left to right.

    Args:
        title: Read by screen readers.
        across: Label of the horizontal axis.
        entries: Lines of positive values; a zero is drawn at the lowest value of all.
        notes: Shown under the pointer, one a position.
        marked: A position to mark.

    Returns:
        "" where no value is positive.
    """
    values = [value for line in entries for value in line.values if value]
    if not values:
        return ""
    low, high = math.floor(math.log10(min(values)) - 0.1), math.ceil(math.log10(max(values)) + 0.1)
    left, top, width, height = 76, 14, 800, 250
    count = max(len(line.values) for line in entries)

    def x(position: int) -> float:
        return left + width * (position + 0.5) / count

    def y(value: float) -> float:
        return top + height * (high - math.log10(max(value, 10.0**low))) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {left + width + 14} {top + height + 66}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    step = max(1, (high - low) // 6)
    for exponent in range(low, high + 1, step):
        at = y(10.0**exponent)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="name soft" x="{left - 8}" y="{at + 4:.1f}">1e{exponent}</text>')
    parts += _positions(count, x, top + height)
    if marked is not None:
        parts.append(f'<line class="fault" x1="{x(marked):.1f}" x2="{x(marked):.1f}" y1="{top}" y2="{top + height}"/>')
    for line in entries:
        shade = COLORS[line.color % len(COLORS)]
        points = [(x(position), y(value)) for position, value in enumerate(line.values) if value is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        style = f'class="{line.guide}"' if line.guide else f'stroke="{shade}" stroke-width="2"'
        parts.append(f'<polyline fill="none" {style} points="{path}"/>')
        parts += [] if line.guide else [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{shade}"/>' for a, b in points]
    for position, note in enumerate(notes):
        # A dot is too small to point at.
        parts.append(
            f'<rect x="{left + width * position / count:.1f}" y="{top}" width="{width / count:.1f}" height="{height}" fill="transparent"><title>{escape(note)}</title></rect>'
        )
    parts.append(f'<text class="tick" x="{left + width / 2}" y="{top + height + 34}">{escape(across)}</text>')
    at = left
    for line in entries:
        shade = "" if line.guide else f' stroke="{COLORS[line.color % len(COLORS)]}" stroke-width="3"'
        parts.append(
            f'<line class="{line.guide}"{shade} x1="{at}" x2="{at + 22}" y1="{top + height + 54}" y2="{top + height + 54}"/>'
        )
        parts.append(f'<text x="{at + 28}" y="{top + height + 58}">{escape(line.name)}</text>')
        at += 44 + round(7.2 * len(line.name))
    parts.append("</svg>")
    return "".join(parts)


class Column:
    """One column of `columns`.

    Args:
        shares: Parts of the height from 0 to 1, each drawn over the one before.
        note: Shown under the pointer.
    """

    def __init__(self, shares: Sequence[float], note: str) -> None:
        self.shares, self.note = shares, note


def columns(title: str, across: str, names: Sequence[str], entries: Sequence[Column]) -> str:
    """Return a chart of columns from 0 to 100 %.

    Args:
        title: Read by screen readers.
        across: Label of the horizontal axis.
        names: Of the shares, in their order.
        entries: Columns from left to right.
    """
    left, top, width, height = 76, 14, 800, 170
    count = max(1, len(entries))

    def x(position: int) -> float:
        return left + width * (position + 0.5) / count

    parts = [
        f'<svg viewBox="0 0 {left + width + 14} {top + height + 66}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for tick in (0, 25, 50, 75, 100):
        at = top + height * (1 - tick / 100)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="name soft" x="{left - 8}" y="{at + 4:.1f}">{tick} %</text>')
    thick = max(2.0, 0.72 * width / count)
    for position, entry in enumerate(entries):
        parts.append(f"<g><title>{escape(entry.note)}</title>")
        for index, share in enumerate(entry.shares):
            tall = height * min(1.0, max(0.0, share))
            parts.append(
                f'<rect x="{x(position) - thick / 2:.1f}" y="{top + height - tall:.1f}" width="{thick:.1f}" height="{tall:.1f}" fill="{SHARES[index]}"/>'
            )
        parts.append("</g>")
    parts += _positions(count, x, top + height)
    parts.append(f'<text class="tick" x="{left + width / 2}" y="{top + height + 34}">{escape(across)}</text>')
    at = left
    for index, name in enumerate(names):
        parts.append(f'<rect x="{at}" y="{top + height + 47}" width="14" height="12" fill="{SHARES[index]}"/>')
        parts.append(f'<text x="{at + 20}" y="{top + height + 58}">{escape(name)}</text>')
        at += 40 + round(7.2 * len(name))
    parts.append("</svg>")
    return "".join(parts)


#: a pale and a strong color for shares that overlap
SHARES = ("#8fbfe0", "#d55e00")


class Point:
    """One mark of `curve`, with the note that is shown under the pointer."""

    def __init__(self, x: float, y: float, note: str) -> None:
        self.x, self.y, self.note = x, y, note


def curve(title: str, across: str, up: str, points: Sequence[Point], guides: Sequence[tuple[str, float, str]]) -> str:
    """Return points joined from left to right on linear axes.

    Args:
        title: Read by screen readers.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
        points: In the order in which they are joined.
        guides: (name, height, "guide" or "limit") of horizontal reference lines.
    """
    heights = [point.y for point in points] + [height for _, height, _ in guides]
    low, high = min(heights), max(heights)
    margin = (high - low) * 0.12 or 0.01
    low, high = low - margin, high + margin
    last = max((point.x for point in points), default=1) or 1
    left, top, width, height = 76, 14, 800, 220

    def at(x: float, y: float) -> tuple[float, float]:
        return left + 16 + (width - 32) * x / last, top + height * (high - y) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {left + width + 14} {top + height + 44}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for share in (0.1, 0.5, 0.9):
        value = low + (high - low) * share
        y = at(0, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="name soft" x="{left - 8}" y="{y + 4:.1f}">{value:.4g}</text>')
    for name, value, kind in guides:
        y = at(0, value)[1]
        parts.append(f'<line class="{kind}" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Its name would overlap the points, which lie above the limit.
        parts.append(f'<text class="soft" x="{left + 24}" y="{y + (14 if kind == "limit" else -5):.1f}">{escape(name)}</text>')
    path = " ".join("{:.1f},{:.1f}".format(*at(point.x, point.y)) for point in points)
    parts.append(f'<polyline fill="none" stroke="{COLORS[0]}" stroke-width="2" points="{path}"/>')
    for point in points:
        x, y = at(point.x, point.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS[0]}"><title>{escape(point.note)}</title></circle>'
            f'<text class="tick" x="{x:.1f}" y="{top + height + 16}">{point.x:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{left + width / 2}" y="{top + height + 36}">{escape(across)}; up: {escape(up)}</text></svg>'
    )
    return "".join(parts)


def _positions(count: int, x: Callable[[int], float], bottom: float) -> list[str]:
    step = max(1, math.ceil(count / 25))
    return [f'<text class="tick" x="{x(position):.1f}" y="{bottom + 16}">{position}</text>' for position in range(0, count, step)]


def _ticks(top: float) -> list[float]:
    step = 10 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if top / size <= 6)
    return [step * index for index in range(int(top / step) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
