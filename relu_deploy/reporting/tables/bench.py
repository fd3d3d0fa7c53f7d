"""The table of `bench`: one row a model, backend, variant and batch size, and notes below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.tables.layers import print_layers
from relu_deploy.reporting.terminal import GOOD, markup, new_table, number, show

__all__ = ["print_bench"]

Result = Mapping[str, Any]
COLUMNS = (
    *("model", "backend", ">batch", ">p50 ms", ">p90", ">p99", ">mean ± 95%", ">images/s", ">speed-up"),
    *(">of limit", ">peak MB", ">load s", "accuracy", "verified"),
)


def print_bench(result: Result) -> None:
    """Print what `bench --json` writes."""
    _print_environment(result["environment"])
    table = new_table(*COLUMNS)
    ratios = {(ratio["model"], ratio["batch"], ratio["backend"], ratio["variant"]): ratio for ratio in result["ratios"]}
    previous = None
    for run in result["runs"]:
        if previous not in (None, (run["model"], run["batch"])):
            table.add_section()
        previous = (run["model"], run["batch"])
        ratio = ratios.get((run["model"], run["batch"], run["backend"], run["variant"]))
        name = (markup(run["model"]), _row_name(run), str(run["batch"]))
        table.add_row(*name, *(_cells(run, ratio) if run["latency_ms"] else (f"[red]{markup(run['error'])}[/]",)))
    show(table)
    print_layers(result["runs"])
    _print_notes(result)


def _print_environment(environment: Result) -> None:
    cpu, load = environment["cpu"], environment["load_average"]
    busy = f", load {load[0]:.1f}" if load else ""
    threads, cpus = count_of(environment["threads"], "thread"), count_of(cpu["usable_cpus"], "CPU")
    versions = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    source = (
        f" ({environment['threads_source']})"
        if environment["threads"] != cpu["usable_cpus"] and "threads_source" in environment
        else ""
    )
    show(f"{markup(cpu['model'])}, {threads} of {cpus}{source}{busy}")
    show(f"[dim]{markup(versions)}[/]")


def _row_name(run: Result) -> str:
    unsettled = run["latency_ms"] is not None and not run["warmed_up"]
    return markup(f"{run['backend']} {run['variant']}".strip()) + (" [yellow]*[/]" if unsettled else "")


def _cells(run: Result, ratio: Result | None) -> tuple[str, ...]:
    latency, roofline, metric = run["latency_ms"], run["roofline"], run["accuracy"]
    interval = latency["ci95"]
    return (
        *(number(latency[name]) for name in ("p50", "p90", "p99")),
        number(latency["mean"]) + (f" ± {(interval[1] - interval[0]) / 2:.2g}" if interval else ""),
        number(run["throughput"]),
        _speedup(ratio),
        f"{roofline['share']:.0%}" if roofline else "",
        f"{run['peak_bytes'] / 1e6:.0f}" if run["peak_bytes"] else "",
        number((run["load_seconds"] or 0) + (run["first_run_seconds"] or 0)),
        markup(f"{metric['name']} {metric['value']:.4f} ({metric['samples']})") if metric else "",
        {True: GOOD, False: "[bold red]NO[/]", None: "not checked"}[run["verified"]],
    )


def _speedup(ratio: Result | None) -> str:
    if ratio is None:
        return "1"
    interval = ratio["ci95"]
    return f"{ratio['speedup']:.2f}x" + (f" \\[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _print_notes(result: Result) -> None:
    if against := sorted({ratio["against"] for ratio in result["ratios"]}):
        show(
            f"speed-up: against {markup(', '.join(against))}, round by round; load: until the first answer; "
            "of limit: of the float32 matrix rate"
        )
    if any(run["warmed_up"] is False for run in result["runs"]):
        show("[yellow]*[/] did not settle while warming up: the machine was busy, read its interval")
    for run in result["runs"]:
        if run["verified"] is False and run["error_ratio"] is not None:
            # 8-bit variants are calibrated on data, and random numbers lie outside that range.
            random = not (run["accuracy"] or result["environment"].get("data"))
            advice = "; it was fed random numbers: --data D feeds real rows" if random else ""
            row = f"{run['model']} {run['backend']} {run['variant']}".strip()
            show(f"[bold red]not verified[/]: {markup(row)}: error ratio {number(run['error_ratio'])}{advice}")
    if result.get("comparison"):
        _print_comparison(result["comparison"])
    for name, reason in result["left_out"].items():
        show(f"[dim]not run: {markup(name)}: {markup(reason)}[/]")


def _print_comparison(comparison: Result) -> None:
    """Print the time of each row over that in an earlier benchmark."""
    for row in comparison["rows"]:
        name = markup(f"{row['model']} {row['backend']} {row['variant']}".rstrip() + f", batch {row['batch']}")
        interval = f" \\[{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]" if row["ci95"] else ""
        ratio = "" if row["ratio"] is None else f": {row['ratio']:.3f}x the time{interval}"
        reason = f": {markup(row['reason'])}" if row["reason"] else ""
        verdict = "[bold red]slower[/]" if row["slower"] else "not slower" if not reason else "[yellow]not decided[/]"
        show(f"{verdict}: {name}{ratio}{reason}")
    limit = f"more than {comparison['max_slower']:.1%} slower, beyond the 95% interval, fails"
    show(f"[dim]compared with {markup(comparison['file'])}; {limit}[/]")
    if comparison["other_machine"]:
        show(f"[yellow]the earlier benchmark ran on another machine: {markup(comparison['other_machine'])}[/]")
    if comparison["missing"]:
        show(f"[yellow]not in this benchmark: {markup('; '.join(comparison['missing']))}[/]")
