"""The page of `optimize`: accuracy against segments in float32, the cost of each segment, nodes in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from relu_deploy.reporting.optimize_phrases import (
    accuracy_of,
    confidence_of,
    preparation_of,
    runtime_of,
    size_of,
    speed_of,
    verification_of,
)
from relu_deploy.reporting.pages.candidates import candidates_section
from relu_deploy.reporting.pages.html import page
from relu_deploy.reporting.pages.svg import Bar, Point, bars, curve
from relu_deploy.reporting.phrases import count_of

__all__ = ["optimize_page"]

Result = Mapping[str, Any]
#: segments whose cost is drawn
DRAWN = 20


def optimize_page(result: Result) -> str:
    """Return the HTML page for what `optimize --json` writes."""
    verdict = (
        '<span class="good">Stored: it passes the accuracy gate.</span>'
        if result["passed"]
        else f'<span class="bad">Not stored: {"no candidate passes" if result.get("auto") else "it misses the accuracy gate"}.</span>'
    )
    evidence = result["evidence"]
    body = [
        f"<h1>{escape(result['model'])}, {result['precision']} for {escape(result['target'])}</h1>",
        f'<p class="soft">calibrated on {_rows(evidence["calibrated_on"])}, measured on {_rows(evidence["measured_on"])}'
        f"{'' if evidence['held_out'] else ', which overlap'}; {result['seconds']:.1f} s</p>",
        f"<p>{verdict} {escape(accuracy_of(result))}.</p>",
        f"<dl><dt>confidence</dt><dd>{escape(confidence_of(result))}</dd><dt>size</dt><dd>{escape(size_of(result))}</dd><dt>speed</dt><dd>{escape(speed_of(result))}</dd>"
        f"<dt>verified</dt><dd>{escape(verification_of(result))}</dd>"
        f"{f'<dt>runs on</dt><dd>{escape(runtime_of(result))}</dd>' if result.get('backend') else ''}</dl>",
    ]
    body += [f"<p>{escape(line)}</p>" for line in preparation_of(result)]
    if result.get("auto"):
        body.append(candidates_section(result["auto"]))
    body.append("<h2>Accuracy and segments in float32</h2>" + _trade_off(result))
    if result["costs"]:
        body.append("<h2>Cost of each segment</h2>" + _costs(result["costs"]))
    if result["fallbacks"]:
        body.append("<h2>Nodes in float32</h2>" + _fallbacks(result["fallbacks"]))
    return page(f"relu_deploy: {result['model']} {result['variant']}", "".join(body))


def _rows(one: Result) -> str:
    return f"{count_of(one['rows'], 'row')} of {escape(one['data'])}"


def _trade_off(result: Result) -> str:
    accuracy = result["accuracy"]
    points = [
        Point(step["float_segments"], step["value"], f"{step['float_segments']} segments in float32: {step['value']:.4f}")
        for step in sorted(result["curve"], key=lambda step: step["float_segments"])
    ]
    limit = accuracy["before"] - accuracy["max_drop"]
    guides = [("float32", accuracy["before"], "guide"), ("gate", limit, "limit")]
    drawing = curve(f"{accuracy['metric']} by segments in float32", "segments in float32", accuracy["metric"], points, guides)
    return f'<figure class="wide scroll"><figcaption>{escape(accuracy["metric"])}</figcaption>{drawing}</figure>'


def _costs(costs: Sequence[Result]) -> str:
    entries = [
        Bar(_short(one["segment"]), one["relative_error"] or 0.0, None, 0, f"{one['segment']}: {_error(one)}")
        for one in costs[:DRAWN]
    ]
    drawing = bars("relative error by segment", "rel. error", entries)
    more = f'<p class="soft">The costliest {DRAWN} of {len(costs)}.</p>' if len(costs) > DRAWN else ""
    return (
        '<figure style="max-width:640px"><figcaption>Error of the outputs with this segment alone in the low precision</figcaption>'
        f"{drawing}</figure>{more}"
    )


def _short(segment: str) -> str:
    """Return the end of a segment's name, without the operator: what tells it from its neighbors."""
    name = segment.rsplit("/", 1)[0]
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _error(one: Result) -> str:
    return "broken" if one["relative_error"] is None else f"{one['relative_error']:.3g}"


def _fallbacks(fallbacks: Sequence[Result]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['node'])}</code></td><td>{escape(one['operator'])}</td><td>{escape(one['reason'])}</td></tr>"
        for one in fallbacks
    )
    return f'<div class="scroll left"><table><tr><th>node</th><th>operator</th><th>reason</th></tr>{rows}</table></div>'
