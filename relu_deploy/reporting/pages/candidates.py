"""The part of the page of `optimize --precision auto` about its candidates: a chart of their speed, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from relu_deploy.reporting.candidate_phrases import goal_of, kernels_of, label_of, time_of
from relu_deploy.reporting.pages.svg import COLORS, Bar, bars

__all__ = ["candidates_section"]

Result = Mapping[str, Any]
#: outcome → index into `COLORS` and its meaning
OUTCOMES = {
    "chosen": (2, "chosen"),
    "passed": (0, "passes, slower than the chosen one"),
    "slower": (4, "passes, slower than float32"),
    "failed": (1, "does not pass"),
    "eliminated": (6, "eliminated before it was checked"),
}


def candidates_section(auto: Result) -> str:
    """Return the HTML of the field `auto` of what `optimize --json` writes."""
    candidates = auto["candidates"]
    timed = sorted((one for one in candidates if one["speedup"] is not None), key=lambda one: -one["speedup"])
    return (
        f'<h2>Candidates</h2><p class="soft">{escape(goal_of(auto))}. A speed is the median over rounds of the ratio to the float32 '
        "model on the target's own runtime in the same round; whiskers are its 95% interval, which takes six rounds. Each candidate is "
        "drawn with the last level in which it took part.</p>"
        f"{_chart(auto, timed) if timed else ''}{_table(auto, candidates)}{_unusable(auto['unusable'])}"
    )


def _chart(auto: Result, timed: Sequence[Result]) -> str:
    entries = []
    for one in timed:
        value, interval = one["speedup"], one["speedup_ci95"]
        note = f"{label_of(one)}: {value:.4g}x, {time_of(one, auto)}, {one['outcome']}{': ' + one['reason'] if one['reason'] else ''}"
        # A whisker far beyond its bar says only that the machine was busy, and would shrink every other bar.
        bounds = None if interval is None else (interval[0], min(interval[1], 2 * value))
        entries.append(Bar(label_of(one), value, bounds, OUTCOMES[one["outcome"]][0] if one["outcome"] in OUTCOMES else 6, note))
    title, unit = "times as fast as float32, more is better", "x"
    shown = {one["outcome"] for one in timed}
    legend = "".join(
        f'<span><i style="background:{COLORS[color]}"></i>{text}</span>'
        for name, (color, text) in OUTCOMES.items()
        if name in shown
    )
    return (
        f'<figure class="wide" style="max-width:860px"><figcaption>{title}</figcaption>{bars(title, unit, entries)}'
        f'<div class="legend">{legend}</div></figure>'
    )


def _table(auto: Result, candidates: Sequence[Result]) -> str:
    heads = ("candidate", "outcome", "p50", "speed", "accuracy", "kernels", "RMS error", "reason")
    rows = []
    for one in candidates:
        interval = one["speedup_ci95"]
        speed = (
            ""
            if one["speedup"] is None
            else f"{one['speedup']:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
        )
        cells = (
            label_of(one),
            one["outcome"],
            time_of(one, auto),
            speed,
            "" if one["accuracy"] is None else f"{one['accuracy']:.4f}",
            kernels_of(one),
            "" if one["relative_error"] is None else f"{one['relative_error']:.2g}",
            one["reason"],
        )
        # Numbers stay on one line, words may wrap.
        classes = ("", "", ' class="whole"', ' class="whole"', "", "", "", "")
        rows.append(
            "<tr>" + "".join(f"<td{name}>{escape(cell)}</td>" for name, cell in zip(classes, cells, strict=True)) + "</tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll left"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _unusable(unusable: Mapping[str, str]) -> str:
    lines = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
    return f'<p class="soft">Not usable here: {escape(lines)}.</p>' if lines else ""
