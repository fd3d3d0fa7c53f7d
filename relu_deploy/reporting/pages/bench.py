"""The page of `bench`: a table and charts for each model and batch size, and the machine that they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from relu_deploy.reporting.pages.batch_curve import Series, batch_curve
from relu_deploy.reporting.pages.device_table import device_table
from relu_deploy.reporting.pages.html import page
from relu_deploy.reporting.pages.layers import layers_section
from relu_deploy.reporting.pages.svg import Bar, bars, dots
from relu_deploy.reporting.phrases import count_of

__all__ = ["bench_page"]

Result = Mapping[str, Any]


#: by what a row says of its outputs
VERIFIED = {True: '<span class="good">yes</span>', False: '<span class="bad">NO</span>', None: "not checked"}


def bench_page(result: Result) -> str:
    """Return the HTML page for what `bench --json` writes."""
    environment = result["environment"]
    cpu = environment["cpu"]
    names = list(dict.fromkeys(_name(run) for run in result["runs"]))
    body = [
        "<h1>Benchmark</h1>",
        f'<p class="soft">{escape(cpu["model"])}, {count_of(environment["threads"], "thread")}, {escape(environment["time"])}, '
        f"relu_deploy {escape(environment['relu_deploy'])}</p>",
        f"<p>{_verdict(result)} A timing is one call from arrays to arrays. Each backend ran in its own process, and the processes took turns; "
        "whiskers are 95% confidence intervals of the mean over the rounds. No measurement was removed. Right: the outputs agree with "
        "the float64 truth. Load: until the first output. Of limit: on a CPU, of its measured float32 matrix rate; on a GPU, of what "
        "its matrix rate in the row's precision and the bytes of weights, inputs and outputs allow for the GPU's own time.</p>",
    ]
    charted: set[str] = set()
    for (model, batch), group in groupby(result["runs"], key=lambda run: (run["model"], run["batch"])):
        rows = list(group)
        if model not in charted:
            charted.add(model)
            body.append(_by_batch(model, [run for run in result["runs"] if run["model"] == model], names))
        body.append(f"<h2>{escape(model)}, batch {batch}</h2>")
        body.append(_table(rows, result["ratios"]))
        body.append(device_table({_name(row): row for row in rows}))
        measured = [row for row in rows if row["latency_ms"]]
        if measured:
            body.append(f'<div class="charts">{_latency(model, measured, names)}{_spread(model, measured, names)}</div>')
        body += [layers_section(row, environment["limits"]) for row in measured]
    if any(run["warmed_up"] is False for run in result["runs"]):
        body.append('<p class="soft">* did not settle while warming up: the machine was busy, read its interval.</p>')
    body.append("<h2>Measured on</h2>" + _facts(environment))
    if result["left_out"]:
        missing = "".join(f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>" for name, reason in result["left_out"].items())
        body.append(f"<h2>Not run</h2><dl>{missing}</dl>")
    return page("relu_deploy: benchmark", "".join(body))


def _verdict(result: Result) -> str:
    if not result["passed"]:
        return '<span class="bad">Not every row ran and gave the right answers.</span>'
    unchecked = sum(run["verified"] is None for run in result["runs"])
    if unchecked:
        of_rows = count_of(len(result["runs"]), "row")
        return f"No row is known to give wrong answers; {unchecked} of {of_rows} could not be checked."
    return '<span class="good">Every row gives the right answers.</span>'


def _by_batch(model: str, rows: Sequence[Result], names: Sequence[str]) -> str:
    """Return the curves over batch sizes: of whole calls, and of the GPU's own time where it was measured; "" for a single size."""
    figures = []
    for caption, part in (("whole calls", "latency_ms"), ("the GPU's own time", "run_ms")):
        points: dict[str, list[tuple[int, float, tuple[float, float] | None]]] = {}
        for row in rows:
            latency = row["latency_ms"] if part == "latency_ms" else (row.get("device") or {}).get(part)
            if latency:
                low, high = latency["ci95"] or (0, 0)
                interval = (row["batch"] / high, row["batch"] / low) if low > 0 else None
                points.setdefault(_name(row), []).append((row["batch"], row["batch"] / latency["mean"], interval))
        # From images a millisecond to images a second.
        entries = [
            Series(name, [(b, 1e3 * mean, (1e3 * i[0], 1e3 * i[1]) if i else None) for b, mean, i in at], names.index(name))
            for name, at in points.items()
        ]
        if chart := batch_curve(f"Throughput of {model} over batch sizes, {caption}", entries):
            figures.append(
                f"<figure><figcaption>Throughput over batch sizes, {caption}, with 95% intervals</figcaption>{chart}</figure>"
            )
    return f'<h2>{escape(model)}</h2><div class="charts curves">{"".join(figures)}</div>' if figures else ""


def _name(row: Result) -> str:
    """Return the name of a run or a ratio: its backend, and its variant where it has one."""
    return f"{row['backend']} {row['variant']}" if row["variant"] else str(row["backend"])


def _table(rows: Sequence[Result], ratios: Sequence[Result]) -> str:
    head = (
        *("backend", "right", "accuracy", "precision", "p50 ms", "p90", "p99", "mean", "images/s", "speed-up", "of limit"),
        *("peak MB", "load s"),
    )
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for row in rows:
        latency = row["latency_ms"]
        if latency is None:
            lines.append(
                f'<tr><td>{escape(_name(row))}</td><td class="bad" colspan="{len(head) - 1}">{escape(row["error"])}</td></tr>'
            )
            continue
        same = (row["model"], row["batch"], _name(row))
        ratio = next((one for one in ratios if (one["model"], one["batch"], _name(one)) == same), None)
        speedup = "1" if ratio is None else f"{ratio['speedup']:.2f}×"
        if ratio and ratio["ci95"]:
            speedup += f" <span class='soft'>[{ratio['ci95'][0]:.2f}, {ratio['ci95'][1]:.2f}]</span>"
        metric, roofline = row["accuracy"], row["roofline"]
        cells = (
            escape(_name(row)) + ("" if row["warmed_up"] else " *"),
            VERIFIED[row["verified"]],
            f"{metric['name']} {metric['value']:.4f} <span class='soft'>({metric['samples']})</span>" if metric else "",
            escape(row["precision"]),
            *(f"{latency[name]:.3g}" for name in ("p50", "p90", "p99", "mean")),
            f"{row['throughput']:,.1f}",
            speedup,
            f"{roofline['share']:.0%}" if roofline else "",
            f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] else "",
            f"{row['load_seconds'] + row['first_run_seconds']:.2f}",
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _latency(model: str, rows: Sequence[Result], names: Sequence[str]) -> str:
    entries = [
        Bar(
            _name(row),
            row["latency_ms"]["mean"],
            tuple(row["latency_ms"]["ci95"]) if row["latency_ms"]["ci95"] else None,
            names.index(_name(row)),
            f"{_name(row)}: mean {row['latency_ms']['mean']:.4g} ms over {row['latency_ms']['runs']} runs",
        )
        for row in rows
    ]
    return f"<figure><figcaption>Mean latency, with its 95% interval</figcaption>{bars(f'Mean latency of {model}', 'ms', entries)}</figure>"


def _spread(model: str, rows: Sequence[Result], names: Sequence[str]) -> str:
    marks = [
        (
            _name(row),
            [row["latency_ms"][name] for name in ("minimum", "p50", "p90", "p99", "maximum")],
            names.index(_name(row)),
        )
        for row in rows
    ]
    caption = "From the fastest run to the slowest: minimum, p50, p90, p99, maximum (logarithmic)"
    return f"<figure><figcaption>{caption}</figcaption>{dots(f'Latency distribution of {model}', 'ms', marks)}</figure>"


def _gpu_limits(limits: Result | None) -> str:
    if not limits:
        return "no GPU was used"
    if "not_measured" in limits:
        return f"not measured: {limits['not_measured']}"
    rates = [f"{name} {rate:,.1f}" for name, rate in limits["tera_operations_per_s"].items()]
    rates += [f"{name} {why}" for name, why in limits["missing"].items()]
    return f"10^12 operations a second: {', '.join(rates)}; copy {limits['copy_gb_per_s']:,.0f} GB/s; L2 {limits['l2_mb']:.0f} MB"


def _facts(environment: Result) -> str:
    cpu, limits = environment["cpu"], environment["limits"]
    facts = {
        "CPU": f"{cpu['model']}, {cpu['usable_cpus']} usable CPUs, {', '.join(cpu['features']) or 'no vector extensions known'}",
        "clock": f"{cpu['mhz']:.0f} MHz at the start, governor {cpu['governor'] or 'not readable'}"
        if cpu["mhz"]
        else "not readable",
        "measured limits": f"{limits['float32_gflops']} GFLOP/s float32, copy {limits['copy_gb_per_s']} GB/s"
        if limits
        else "not measured",
        "limits of the GPU": _gpu_limits(environment.get("gpu_limits")),
        "GPU": "; ".join(" ".join(gpu.values()) for gpu in environment["gpus"]) or "none",
        "threads": str(environment["threads"]),
        "load average": str(environment["load_average"]),
        "system": f"{environment['os']}, Python {environment['python']}",
        "libraries": ", ".join(f"{name} {version}" for name, version in environment["libraries"].items()),
        "timed per row": f"{environment['seconds_per_row']} s, seed {environment['seed']}",
    }
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()) + "</dl>"
