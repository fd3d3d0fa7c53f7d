"""What `optimize --json` writes, as a table for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as html
from typing import Any

from rich.markup import escape

from relu_deploy.reporting.html import page
from relu_deploy.reporting.svg import Bar, Point, bars, curve
from relu_deploy.reporting.tables import show

__all__ = ["optimize_page", "print_optimize"]

Result = Mapping[str, Any]
#: fallbacks that the terminal shows, and segments whose cost the page draws
SHOWN, DRAWN = 8, 20


def print_optimize(result: Result) -> None:
    accuracy = result["accuracy"]
    verdict = "[green]stored[/]" if result["passed"] else "[bold red]not stored[/]"
    place = f" as {escape(result['file'])}" if result["file"] else ""
    show(
        f"[bold]{escape(result['model'])}[/] {result['precision']} for {result['target']}: {verdict}{place}, {result['seconds']:.1f} s"
    )
    show(f"  {escape(_accuracy(result))}")
    show(f"  {_size(result)}; {_speed(result)}")
    show(f"  {escape(_checked(result))}")
    for line in _prepared(result):
        show(f"  {escape(line)}")
    for one in result["tried"] if len(result["tried"]) > 1 else ():
        speed = "" if one["speedup"] is None else f", {one['speedup']:.2f}x"
        show(f"  tried {one['precision']}: {'passes' if one['passed'] else 'misses the gate'} with {one['value']:.4f}{speed}")
    if len(result["curve"]) > 1:
        steps = ", ".join(f"{step['float_segments']} → {step['value']:.4f}" for step in result["curve"])
        show(f"  segments in float32 → {accuracy['metric']}: {steps}")
    back = result["fallbacks"]
    for one in back[:SHOWN]:
        show(f"  [dim]float32: {escape(one['node'])} ({one['operator']}): {escape(one['reason'])}[/]")
    if len(back) > SHOWN:
        show(f"  [dim]and {len(back) - SHOWN} more, in the JSON[/]")


def optimize_page(result: Result) -> str:
    """Return the whole page."""
    verdict = (
        '<span class="good">Stored: it passes its gate.</span>'
        if result["passed"]
        else '<span class="bad">Not stored: it misses its gate.</span>'
    )
    evidence = result["evidence"]
    body = [
        f"<h1>{html(result['model'])}, {result['precision']} for {html(result['target'])}</h1>",
        f'<p class="soft">calibrated on {_rows(evidence["calibrated_on"])}, measured on {_rows(evidence["measured_on"])}'
        f"{'' if evidence['held_out'] else ', which overlap'}; {result['seconds']:.1f} s</p>",
        f"<p>{verdict} {html(_accuracy(result))}.</p>",
        f"<dl><dt>size</dt><dd>{html(_size(result))}</dd><dt>speed</dt><dd>{html(_speed(result))}</dd>"
        f"<dt>verified</dt><dd>{html(_checked(result))}</dd></dl>",
    ]
    body += [f"<p>{html(line)}</p>" for line in _prepared(result)]
    body.append("<h2>What float32 buys</h2>" + _trade_off(result))
    if result["costs"]:
        body.append("<h2>What each segment costs</h2>" + _costs(result["costs"]))
    if result["fallbacks"]:
        body.append("<h2>Nodes in float32</h2>" + _fallbacks(result["fallbacks"]))
    return page(f"relu_deploy: {result['model']} {result['variant']}", "".join(body))


def _accuracy(result: Result) -> str:
    one = result["accuracy"]
    how = ", simulated on the CPU" if one["simulated"] else ""
    # Only 8 bits are calibrated; the other precisions have seen no row before.
    seen = ", calibrated on too" if result["precision"] in ("int8", "fp8") and not result["evidence"]["held_out"] else ""
    return (
        f"{one['metric']} {one['before']:.4f} → {one['after']:.4f} on {one['samples']} rows{seen} "
        f"(drop {one['drop']:.4f}, {one['max_drop']:g} is allowed{how})"
    )


def _size(result: Result) -> str:
    size = result["bytes"]
    return f"{size['before'] / 1e6:.2f} MB → {size['after'] / 1e6:.2f} MB of weights"


def _speed(result: Result) -> str:
    if result["speedup"] is None:
        return "speed not measured: the target is not at hand" if result["accuracy"]["simulated"] else "speed not measured"
    interval = result["speedup_ci95"]
    return f"{result['speedup']:.2f}x the speed of float32" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _checked(result: Result) -> str:
    checked = result["verified"]
    if checked is None:
        return "its Relus were not compared: the gate was missed before"
    ratio = "" if checked["largest_ratio"] is None else f" (largest error ratio {checked['largest_ratio']:.2f})"
    if checked["passed"]:
        agree = "agree with the float32 graph within the precision's own noise"
        return f"{checked['relus_passed']} of {checked['relus']} Relus {agree}{ratio}"
    where = f", first at {checked['first_divergence']}" if checked["first_divergence"] else ""
    differ = checked["relus"] - checked["relus_passed"]
    why = f": {checked['reason']}" if checked["reason"] else ratio
    return f"{differ} of {checked['relus']} Relus differ from the float32 graph by more than the precision explains{where}{why}"


def _prepared(result: Result) -> list[str]:
    lines = []
    compacted, equalized = result["prepared"]["compact"], result["prepared"]["equalize"]
    if compacted is not None:
        before, after = result["prepared"]["flops_before"], result["prepared"]["flops_after"]
        gone = compacted["channels_before"] - compacted["channels_after"]
        lines.append(
            f"compact: {gone} of {compacted['channels_before']} channels and {len(compacted['relus_removed'])} Relus removed, "
            f"{1 - after / before:.2%} of the FLOPs"
        )
    if equalized is not None:
        lines.append(f"equalized: {len(equalized['pairs'])} pairs of layers, {len(equalized['skipped'])} skipped")
    if result["prepared"]["error_ratio"] is not None:
        lines.append(f"the graph prepared so answers as the model does: error ratio {result['prepared']['error_ratio']:.2g}")
    return lines


def _rows(one: Result) -> str:
    return f"{one['rows']} rows of {html(one['data'])}"


def _trade_off(result: Result) -> str:
    accuracy = result["accuracy"]
    points = [
        Point(step["float_segments"], step["value"], f"{step['float_segments']} segments in float32: {step['value']:.4f}")
        for step in sorted(result["curve"], key=lambda step: step["float_segments"])
    ]
    limit = accuracy["before"] - accuracy["max_drop"]
    guides = [("float32", accuracy["before"], "guide"), ("gate", limit, "limit")]
    drawing = curve(f"{accuracy['metric']} by segments in float32", "segments in float32", accuracy["metric"], points, guides)
    return f'<figure class="wide scroll"><figcaption>{html(accuracy["metric"])}</figcaption>{drawing}</figure>'


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
        f"<tr><td><code>{html(one['node'])}</code></td><td>{html(one['operator'])}</td><td>{html(one['reason'])}</td></tr>"
        for one in fallbacks
    )
    return f'<div class="scroll left"><table><tr><th>node</th><th>operator</th><th>reason</th></tr>{rows}</table></div>'
