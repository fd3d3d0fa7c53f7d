"""The page of `verify`: the nodes at fault, how the error grows along the network, zeros and dead channels of each Relu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from relu_deploy.reporting.pages.html import page
from relu_deploy.reporting.pages.svg import Column, Line, columns, lines
from relu_deploy.reporting.phrases import MOST_ROWS, program_verdict, rest_of, shapes_of

__all__ = ["verify_page"]

Result = Mapping[str, Any]


def verify_page(result: Result) -> str:
    """Return the HTML page for what `verify --json` writes."""
    verdict = (
        '<span class="good">Every Relu and every output agrees.</span>'
        if result["passed"]
        else '<span class="bad">Not everything agrees.</span>'
    )
    if not result["as_requested"]:
        verdict += ' <span class="bad">Not everything ran as requested.</span>'
    inputs = result["inputs"]
    body = [
        f"<h1>{escape(result['model'])}, verified</h1>",
        f'<p class="soft">{escape(result["precision"])} graph against {escape(str(result["against"]))} in float64, on {escape(inputs["source"])} '
        f"input ({escape(shapes_of(inputs))}), {result['seconds']:.1f} s</p>",
        *_program_verdict(result),
        f"<p>{verdict} An error ratio of 1 is the error of correct {escape(result['precision'])} arithmetic on this very input; "
        f"above {result['limit']:g} it is a fault.</p>",
        *_faults(result["backends"]),
        *_preprocess(result.get("preprocess")),
        "<h2>Backends</h2>" + _backends(result["backends"]),
    ]
    seen = [backend for backend in result["backends"] if backend["relus"]]
    if seen:
        seen, drawn = _drawn(seen)
        body += [
            "<h2>Error along the network</h2>" + _growth(seen, result["limit"]),
            "<h2>Zeros and dead channels</h2>" + _sparsity(seen[0]),
        ]
        body.append(f"<h2>{'Relus' if drawn else 'Every Relu'}</h2>{drawn}" + _relus(seen))
    body.append("<h2>Outputs</h2>" + _outputs(result["backends"]))
    return page(f"relu_deploy: {result['model']}, verified", "".join(body))


def _drawn(backends: Sequence[Result]) -> tuple[list[Result], str]:
    """Return the backends with `MOST_ROWS` of their Relus at most, and a sentence on the others, "" if there are none.

    The first Relus that differ are among them, and others at equal distances.
    """
    count = len(backends[0]["relus"])
    if count <= MOST_ROWS:
        return list(backends), ""
    failing = [at for at in range(count) if any(backend["relus"][at]["passed"] is False for backend in backends)]
    kept = failing[: MOST_ROWS // 2]
    step = -(-count // (MOST_ROWS - len(kept)))
    places = sorted({*kept, *range(0, count, step)})
    drawn: list[Result] = [{**backend, "relus": [backend["relus"][at] for at in places]} for backend in backends]
    return drawn, (
        f'<p class="soft">{len(places):,} of {count:,} Relus: the first that differ, and others at equal distances. '
        "The JSON has all of them.</p>"
    )


def _program_verdict(result: Result) -> list[str]:
    known = program_verdict(result)
    return [f'<p class="soft">{escape(known)}</p>'] if known else []


def _preprocess(compared: Result | None) -> list[str]:
    """Return the section about the preprocessing beside the arrays of --preprocess-against."""
    if compared is None:
        return []
    steps = "".join(
        f"<li>{escape(one['step'])}: {escape(one['ours'])} in the manifest, {escape(one['theirs'])} in the arrays</li>"
        for one in compared["steps"]
    )
    rows = "".join(
        f"<tr><td>{escape(one['picture'])}</td><td>{_number(one['largest_levels'])}</td><td>{_number(one['mean_levels'])}</td></tr>"
        for one in compared["pictures"]
    )
    head = "<tr><th>picture</th><th>largest difference, gray levels</th><th>mean</th></tr>"
    return ["<h2>Preprocessing</h2>", f"<ul>{steps}</ul>" if steps else "", f"<table>{head}{rows}</table>"]


def _faults(backends: Sequence[Result]) -> list[str]:
    boxes = []
    shown = set()
    for backend in backends:
        for fault in backend["faults"]:
            key = (fault["node"], fault["where"])
            if key in shown:
                continue
            shown.add(key)
            where = "in the graph" if fault["where"] == "graph" else f"on {escape(fault['where'])}"
            scope = f", PyTorch module <code>{escape(fault['scope'])}</code>" if fault["scope"] else ""
            ratio = f" Error ratio of this node alone: {_number(fault['error_ratio'])}." if fault["error_ratio"] else ""
            boxes.append(
                f'<div class="fault-box"><p><b>{escape(fault["operator"])} <code>{escape(fault["node"])}</code></b>, {where}{scope}</p>'
                f"<p>{escape(fault['kind'])}: {escape(fault['detail'])}.{ratio}</p></div>"
            )
    if not boxes:
        return []
    title = "The node at fault" if len(boxes) == 1 else f"The nodes at fault ({len(boxes)})"
    return [
        f"<h2>{title}</h2>",
        *boxes[:8],
        *([f'<p class="soft">and {len(boxes) - 8} more, in the JSON</p>'] if len(boxes) > 8 else []),
    ]


def _backends(backends: Sequence[Result]) -> str:
    rows = [
        "<tr><th>backend</th><th>verdict</th><th>Relus right</th><th>observed as deployed</th><th>checks without a reference</th><th>kernels</th></tr>"
    ]
    for backend in backends:
        relus = [relu for relu in backend["relus"] if relu["passed"] is not None]
        deployed = sum(relu["as_deployed"] for relu in backend["relus"])
        kernels = ", ".join(
            f"{one['count']} × {one['precision']} on {one['provider']}" for one in backend["delivered"]["kernels"]
        )
        lost = "".join(f'<br><span class="bad">{escape(line)}</span>' for line in backend["delivered"]["differences"])
        cells = (
            escape(backend["name"]),
            _verdict(backend["passed"]),
            f"{sum(relu['passed'] for relu in relus)} of {len(relus)}" if relus else "not observable",
            f"{deployed} of {len(backend['relus'])}" if backend["relus"] else "",
            "<br>".join(
                f"{_sign(check['passed'])} {escape(check['name'])}: {escape(check['detail'])}" for check in backend["checks"]
            ),
            (escape(kernels) or '<span class="soft">the runtime does not report it</span>') + lost,
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        if backend["note"]:
            rows.append(f'<tr><td></td><td class="soft" colspan="5">{escape(backend["note"])}</td></tr>')
    return f'<div class="scroll"><table class="left">{"".join(rows)}</table></div>'


def _growth(backends: Sequence[Result], limit: float) -> str:
    entries = [
        Line(backend["name"], [relu["relative_error"] for relu in backend["relus"]], index)
        for index, backend in enumerate(backends)
    ]
    first = backends[0]["relus"]
    noise = [
        relu["relative_error"] / relu["error_ratio"] if relu["error_ratio"] and relu["relative_error"] else None for relu in first
    ]
    entries += [Line("correct arithmetic", noise, 6, guide="guide")]
    entries += [Line("limit", [None if value is None else value * limit for value in noise], 6, guide="limit")]
    failing = (position for backend in backends for position, relu in enumerate(backend["relus"]) if relu["passed"] is False)
    # Relus that are not compared have an index and no place in the lists.
    notes = [
        f"{relu['index']}: {relu['node']}" + "".join(_note(backend, position) for backend in backends)
        for position, relu in enumerate(first)
    ]
    chart = lines("Relative error at each Relu", "Relu, from input to output", entries, notes, next(failing, None))
    return f'<figure class="wide"><figcaption>RMS error over RMS of the truth, at each Relu</figcaption><div class="scroll">{chart}</div></figure>'


def _note(backend: Result, position: int) -> str:
    relu = backend["relus"][position]
    return f"\n{backend['name']}: error ratio {_number(relu['error_ratio'])}"


def _sparsity(backend: Result) -> str:
    entries = []
    for relu in backend["relus"]:
        contract = relu.get("contract")
        if contract is None:
            entries.append(Column((0.0, 0.0), f"{relu['node']}: not observed"))
            continue
        dead = contract["dead"] / max(1, contract["channels"])
        note = f"{relu['index']}: {relu['node']}\n{contract['sparsity']:.1%} zeros, {contract['dead']} of {contract['channels']} channels zero everywhere"
        entries.append(Column((contract["sparsity"], dead), note))
    names = ("zeros", "channels that are zero everywhere on this input")
    chart = columns("Zeros and dead channels of each Relu", "Relu, from input to output", names, entries)
    more = '<p class="soft">On this input only; <code>relu-deploy census</code> counts over a data set and reports what is proven.</p>'
    return (
        f'<figure class="wide"><figcaption>Zeros and dead channels</figcaption><div class="scroll">{chart}</div></figure>{more}'
    )


def _relus(backends: Sequence[Result]) -> str:
    heads = "".join(f"<th>{escape(backend['name'])}</th><th>max abs</th><th>max ulp</th>" for backend in backends)
    rows = [f"<tr><th>#</th><th>node</th><th>scope</th>{heads}<th>contract</th></tr>"]
    for position, relu in enumerate(backends[0]["relus"]):
        cells = [str(relu["index"]), f"<code>{escape(relu['node'])}</code>", escape(relu["scope"])]
        for backend in backends:
            one = backend["relus"][position]
            shade = "bad" if one["passed"] is False else "good" if one["passed"] else "soft"
            ulp = "" if one["max_ulp"] is None else f"{one['max_ulp']:,}"
            cells += [f'<span class="{shade}">{_number(one["error_ratio"])}</span>', _number(one["max_abs"]), ulp]
        contracts = [backend["relus"][position].get("contract") for backend in backends]
        broken = "; ".join(contract["broken"] for contract in contracts if contract and contract["broken"])
        cells.append(f'<span class="bad">{escape(broken)}</span>' if broken else "kept" if any(contracts) else "")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _outputs(backends: Sequence[Result]) -> str:
    rows = ["<tr><th>backend</th><th>output</th><th>verdict</th><th>error ratio</th><th>max abs</th><th>max ulp</th></tr>"]
    for backend in backends:
        for output in backend["outputs"][:MOST_ROWS]:
            reason = f" {escape(output['reason'])}" if output["reason"] else ""
            cells = (escape(backend["name"]), escape(output["name"]), _verdict(output["passed"]) + reason)
            numbers = (_number(output["error_ratio"]), _number(output["max_abs"]), f"{output['max_ulp']:,}")
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (*cells, *numbers)) + "</tr>")
        if rest := rest_of(len(backend["outputs"])):
            rows.append(f'<tr><td></td><td class="soft" colspan="5">{rest}</td></tr>')
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _verdict(passed: bool | None) -> str:
    return '<span class="good">agrees</span>' if passed else '<span class="bad">differs</span>' if passed is False else "-"


def _sign(passed: bool | None) -> str:
    return (
        '<span class="good">✓</span>'
        if passed
        else '<span class="bad">✗</span>'
        if passed is False
        else '<span class="soft">–</span>'
    )


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.3g}"
