"""Tables for the terminal, from the same dictionaries that --json writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from relu_deploy.reporting.words import shapes_of

__all__ = ["print_bench", "print_export", "print_inspect", "print_prove", "print_verify", "print_zoo", "show"]

Result = Mapping[str, Any]
#: failing tensors of a backend that the table shows: the first ones tell where, the rest is the same error carried on
SHOWN = 4
#: of a package; an image's context holds this whole package
FILES_SHOWN = 12
GOOD, BAD, DIM = "[green]yes[/]", "[bold red]NO[/]", "[dim]-[/]"


def print_zoo(models: Sequence[Result]) -> None:
    table = _table("model", "task", "activation", ">parameters", "input", "weights", "metric")
    for model in models:
        metric = model["metric"]
        shown = f"{metric['name']} {metric['value']:.4f} on {metric['on']}" if metric else ""
        size = "x".join(map(str, model["input"]["shape"]))
        table.add_row(
            model["name"],
            model["task"],
            model["activation"],
            f"{model['parameters']:,}",
            size,
            model["weights"] or "random",
            shown,
        )
    show(table)


def print_export(result: Result) -> None:
    inputs, outputs = (", ".join(_spec(spec) for spec in result[kind]) for kind in ("inputs", "outputs"))
    show(
        f"[bold]{escape(result['bundle'])}[/]  opset {result['opset']}, {result['nodes']} nodes, {result['relus']} Relus, "
        f"{result['seconds']:.1f} s\n  in   {escape(inputs)}\n  out  {escape(outputs)}"
    )


def print_compile(result: Result) -> None:
    how = "kept from before" if result["cache_hit"] else f"built in {result['build_seconds']:.1f} s"
    made_for = result["device"] if result["device"] != "default" else "the library's default GPUs"
    show(
        f"[bold]{escape(result['engine'])}[/]  {how}, {result['bytes'] / 1e6:.2f} MB\n"
        f"  {result['backend']} {escape(result['library'])}, {result['precision']}, for {escape(made_for)}"
    )
    for profile in result["profiles"]:
        shapes = (f"{name}={','.join('x'.join(map(str, shape)) for shape in sizes)}" for name, sizes in profile.items())
        show(f"  profile {escape(' '.join(shapes))}")
    for line in result["warnings"]:
        show(f"  [yellow]{escape(line)}[/]")
    if result["spread"]:
        _print_spread(result["spread"])


def _print_spread(spread: Result) -> None:
    table = _table(">build", ">built in s", ">p50 ms", ">mean ± 95%", ">error", "verified", "")
    for number, trial in enumerate(spread["builds"]):
        latency = trial["latency_ms"]
        table.add_row(
            str(number + 1),
            f"{trial['build_seconds']:.1f}",
            f"{latency['p50']:.4g}",
            f"{latency['mean']:.4g}" + (f" ± {(latency['ci95'][1] - latency['ci95'][0]) / 2:.2g}" if latency["ci95"] else ""),
            "?" if trial["error_ratio"] is None else f"{trial['error_ratio']:.3g}",
            "yes" if trial["verified"] else "[red]no[/]",
            "kept" if number == spread["best"] else "",
        )
    show(table)
    show(
        f"slowest over fastest {spread['slowest_over_fastest']:.3f}, {spread['distinct_plans']} distinct plans; "
        "error: in units of what the precision explains"
    )


def print_serve(result: Result) -> None:
    host = result["host"] if ":" not in result["host"] else f"[{result['host']}]"
    for name in ("http", "grpc", "metrics"):
        if result.get(name) is not None:
            address = f"{host}:{result[name]}" if name == "grpc" else f"http://{host}:{result[name]}"
            show(f"{name:<8} {address}{'/metrics' if name == 'metrics' else ''}")
    for model in result["models"]:
        show(f"model    [bold]{escape(model['name'])}[/]  {model['backend']}, up to {model['max_batch']} rows together")


def print_package(result: Result) -> None:
    show(f"[bold]{escape(result['folder'])}[/]  {escape(result['model'])} for {result['target']}, flavour {result['flavour']}")
    shown = [file for file in result["files"] if not file.rsplit("/", 1)[-1].startswith(".")]
    for file in shown[:FILES_SHOWN]:
        show(f"  {escape(file)}")
    if len(shown) > FILES_SHOWN:
        show(f"  and {len(shown) - FILES_SHOWN} more")
    for note in result["notes"]:
        show(f"  [yellow]note: {escape(note)}[/]")


def print_inspect(result: Result) -> None:
    table = _table(">#", "node", "kind", "shape", "scope", "fused with")
    for relu in result["relus"]:
        shape = "x".join(map(str, relu["shape"])) if relu["shape"] is not None else "?"
        table.add_row(
            str(relu["index"]),
            escape(relu["node"]),
            relu["kind"],
            shape,
            escape(relu["scope"]),
            escape(" ← ".join(relu["fused_with"])),
        )
    show(table)
    least = "at least " if result["unknown"] else ""
    sizes = f"{least}{result['flops'] / 1e9:.3f} GFLOP, {least}{result['bytes'] / 1e6:.1f} MB moved unfused"
    if result["symbols"]:
        sizes = f"operations depend on {escape(', '.join(result['symbols']))}: give sizes with --shape"
    show(
        f"[bold]{escape(result['model'])}[/]  opset {result['opset']}, {result['nodes']} nodes, {len(result['relus'])} Relus\n"
        f"batch {result['batch']}: {sizes}, {result['parameters']:,} parameters"
    )
    if hidden := sum(not relu.get("observable", True) for relu in result["relus"]):
        show(f"[yellow]{hidden} of the Relus are inside bodies or functions whose tensors cannot be observed[/]")
    if result["unknown"]:
        show(f"[yellow]not counted, shapes unknown: {escape(', '.join(result['unknown'][:8]))}[/]")


def print_prove(result: Result) -> None:
    table = _table("kernel", "where", ">inputs", ">NaN", ">signed zero", ">subnormal", ">value", "for instance")
    for kernel in result["kernels"]:
        if kernel["left_out"]:
            table.add_row(kernel["kernel"], kernel["where"], DIM, DIM, DIM, DIM, DIM, f"[dim]{escape(kernel['left_out'])}[/]")
            continue
        counts = [f"[bold red]{count:,}[/]" if count else "0" for count in kernel["mismatches"].values()]
        first = kernel["examples"][0] if kernel["examples"] else None
        example = f"{first['input']} → {first['got']}, not {first['expected']}" if first else ""
        table.add_row(kernel["kernel"], kernel["where"], f"{kernel['inputs_tested']:,}", *counts, example)
    show(
        f"[bold]{result['backend']}[/] {escape(result['version'])}, {result['dtype']}: differences from relu_deploy.relu, bit by bit"
    )
    show(table)
    for finding in result["findings"]:
        show(f"  {escape(finding)}")
    policies = (("NaN", "nan_policy"), ("zero", "negative_zero_policy"), ("subnormals", "subnormals"))
    show(", ".join(f"{name}: {result[key]}" for name, key in policies if result[key]))
    verdict = "[green]proven[/]" if result["passed"] else "[bold red]not proven[/]"
    show(
        f"{verdict}: {result['inputs_tested']:,} bit patterns through Relu in {result['seconds']:.1f} s{_why_not_proven(result)}"
    )


def _why_not_proven(result: Result) -> str:
    """Return the kinds of difference that made `prove` say no, "" when it said yes."""
    failures = result["failures"]
    if not failures:
        return ""
    kinds = ", ".join(dict.fromkeys(failure["kind"].replace("_", " ") for failure in failures))
    strictly = " (--strict)" if result["strict"] else ""
    return escape(f"; differs in {kinds}{strictly}, first in {failures[0]['kernel']} {failures[0]['where']}")


def print_verify(result: Result) -> None:
    inputs = result["inputs"]
    show(
        f"[bold]{escape(result['model'])}[/] against {escape(result['against'])} in float64, "
        f"on {inputs['source']} input {escape(shapes_of(inputs))}"
    )
    table = _table("backend", "tensor", "scope", ">max abs", ">max ulp", ">error ratio", "passed")
    for backend in result["backends"]:
        rows = [(relu["node"], relu["scope"], relu) for relu in backend["relus"]]
        rows += [(f"output {output['name']}", "", output) for output in backend["outputs"]]
        wrong = [row for row in rows if row[2]["passed"] is False]
        # All that failed, else the Relu that came nearest to failing: 200 lines of "fine" tell nobody anything.
        shown = (
            wrong[:SHOWN] or [max(rows[: len(backend["relus"])], key=lambda row: row[2]["error_ratio"] or 0)]
            if backend["relus"]
            else []
        )
        for name, scope, fields in (*shown, *(row for row in rows[len(backend["relus"]) :] if row not in shown)):
            table.add_row(
                backend["name"],
                escape(name),
                escape(scope),
                _number(fields["max_abs"]),
                "" if fields["max_ulp"] is None else f"{fields['max_ulp']:,}",
                _number(fields["error_ratio"]),
                DIM if fields["passed"] is None else GOOD if fields["passed"] else f"{BAD} {escape(fields['reason'])}",
            )
        if len(wrong) > SHOWN:
            table.add_row(backend["name"], f"[dim]and {len(wrong) - SHOWN} more, in --json and --html[/]")
    show(table)
    for backend in result["backends"]:
        compared = [relu for relu in backend["relus"] if relu["passed"] is not None]
        right = sum(relu["passed"] for relu in compared)
        verdict = f"[green]passed[/]: {right}" if backend["passed"] else f"[bold red]differs[/]: in {len(compared) - right}"
        deployed = sum(relu["as_deployed"] for relu in backend["relus"])
        seen = {
            True: ", observed as deployed",
            False: f", [yellow]{deployed} of them observed as deployed[/]",
            None: "",
        }[backend["as_deployed"]]
        note = f" ({escape(backend['note'])})" if backend["note"] else ""
        show(f"{backend['name']}: {verdict} of {len(compared)} Relus{seen}{note}")
        for fault in backend["faults"][:4]:
            where = "in the graph" if fault["where"] == "graph" else f"on {fault['where']}"
            scope = f" ({escape(fault['scope'])})" if fault["scope"] else ""
            show(f"  [bold red]at {escape(fault['node'])}[/]{scope}, {where}: {fault['kind']}: {escape(fault['detail'])}")
        for check in backend["checks"]:
            if check["passed"] is False:
                show(f"  [bold red]{escape(check['name'])}[/]: {escape(check['detail'])}")
        made = [check for check in backend["checks"] if check["passed"]]
        if made:
            spread = [f"{check['name']} ({check['detail']})" for check in made if check["detail"] != "bit-identical"]
            alike = [check["name"] for check in made if check["detail"] == "bit-identical"]
            told = ([f"bit-identical for {', '.join(alike)}"] if alike else []) + spread
            show(f"  [dim]without a reference: {escape('; '.join(told))}[/]")
        for line in backend["delivered"]["differences"]:
            show(f"  [bold red]not as requested[/]: {escape(line)}")


def print_bench(result: Result) -> None:
    environment = result["environment"]
    cpu = environment["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    load = environment["load_average"]
    busy = f", load {load[0]:.1f}" if load else ""
    show(f"{escape(cpu['model'])}, {environment['threads']} threads of {cpu['usable_cpus']} CPUs{busy}")
    show(f"[dim]{escape(versions)}[/]")
    table = _table(
        *(
            "model",
            "backend",
            ">batch",
            ">p50 ms",
            ">p90",
            ">p99",
            ">mean ± 95%",
            ">images/s",
            ">speed-up",
            ">of limit",
            ">peak MB",
            ">load s",
        ),
        *("accuracy", "verified"),
    )
    ratios = {(ratio["model"], ratio["batch"], ratio["backend"], ratio["variant"]): ratio for ratio in result["ratios"]}
    before = None
    for run in result["runs"]:
        if before not in (None, (run["model"], run["batch"])):
            table.add_section()
        before = (run["model"], run["batch"])
        if run["latency_ms"] is None:
            table.add_row(
                run["model"], f"{run['backend']} {run['variant']}".strip(), str(run["batch"]), f"[red]{escape(run['error'])}[/]"
            )
            continue
        latency = run["latency_ms"]
        interval = f" ± {(latency['ci95'][1] - latency['ci95'][0]) / 2:.2g}" if latency["ci95"] else ""
        roofline = run["roofline"]
        table.add_row(
            run["model"],
            f"{run['backend']} {run['variant']}".strip() + ("" if run["warmed_up"] else " [yellow]*[/]"),
            str(run["batch"]),
            *(_number(latency[name]) for name in ("p50", "p90", "p99")),
            f"{_number(latency['mean'])}{interval}",
            _number(run["throughput"]),
            _ratio(ratios.get((run["model"], run["batch"], run["backend"], run["variant"]))),
            f"{roofline['share']:.0%}" if roofline else "",
            f"{run['peak_bytes'] / 1e6:.0f}" if run["peak_bytes"] else "",
            _number((run["load_seconds"] or 0) + (run["first_run_seconds"] or 0)),
            _accuracy(run["accuracy"]),
            GOOD if run["verified"] else BAD,
        )
    show(table)
    against = sorted({ratio["against"] for ratio in result["ratios"]})
    if against:
        show(
            f"speed-up: against {', '.join(against)}, round by round; load: until the first answer; of limit: of the float32 matrix rate"
        )
    if any(run["warmed_up"] is False for run in result["runs"]):
        show("[yellow]*[/] did not settle while warming up: the machine was busy, read its interval")
    for run in result["runs"]:
        if run["verified"] is False and run["error_ratio"] is not None:
            # Noise is not what 8 bits were calibrated for.
            fed = (
                "; it was fed random numbers: --data D feeds real rows"
                if not (run["accuracy"] or environment.get("data"))
                else ""
            )
            row = f"{run['model']} {run['backend']} {run['variant']}".strip()
            show(f"[bold red]not verified[/]: {escape(row)}: error ratio {_number(run['error_ratio'])}{escape(fed)}")
    for name, reason in result["left_out"].items():
        show(f"[dim]not run: {name}: {escape(reason)}[/]")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def show(what: Any) -> None:
    """Print a line with markup, or a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe or a log has no width of its own: nothing is cut or wrapped there.
        console = Console(highlight=False, width=220)
    console.print(what)


def _spec(spec: Result) -> str:
    return f"{spec['name']}: {spec['dtype']}[{'x'.join(map(str, spec['shape']))}]"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _ratio(ratio: Result | None) -> str:
    if ratio is None:
        return "1"
    interval = ratio["ci95"]
    return f"{ratio['speedup']:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _accuracy(metric: Result | None) -> str:
    return "" if metric is None else f"{metric['name']} {metric['value']:.4f} ({metric['samples']})"
