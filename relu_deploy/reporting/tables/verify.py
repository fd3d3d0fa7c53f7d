"""The table of `verify`: the tensors that differ or came nearest to it, then a verdict for each backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from relu_deploy.reporting.phrases import MOST_ROWS, count_of, program_verdict, rest_of, shapes_of
from relu_deploy.reporting.terminal import DIM, GOOD, markup, new_table, number, show

__all__ = ["print_verify"]

Result = Mapping[str, Any]
#: failing tensors of a backend in the table, and its faults below: the first ones locate the fault, the others pass it on
LISTED = 4


def print_verify(result: Result) -> None:
    """Print what `verify --json` writes."""
    inputs = result["inputs"]
    show(
        f"[bold]{markup(result['model'])}[/] against {markup(result['against'])} in float64, "
        f"on {markup(inputs['source'])} input {markup(shapes_of(inputs))}"
    )
    if known := program_verdict(result):
        show(f"[dim]{markup(known)}[/]")
    table = new_table("backend", "tensor", "scope", ">max abs", ">max ulp", ">error ratio", "passed")
    for backend in result["backends"]:
        for row in _rows(backend):
            table.add_row(markup(backend["name"]), *row)
    show(table)
    for line in _not_compared(result):
        show(line)
    for backend in result["backends"]:
        for line in _verdict(backend):
            show(line)
    for line in _preprocess(result.get("preprocess")):
        show(line)


def _preprocess(compared: Result | None) -> Iterator[str]:
    """Yield the lines about the preprocessing beside the given arrays."""
    if compared is None:
        return
    pictures = compared["pictures"]
    failed = [one for one in pictures if not one["passed"]]
    if not failed:
        yield f"preprocessing: [green]passed[/]: {_levels(compared['largest_levels'])} at most in {count_of(len(pictures), 'picture')}"
        return
    yield f"preprocessing: [bold red]differs[/]: in {len(failed)} of {count_of(len(pictures), 'picture')}"
    for one in sorted(failed, key=lambda one: -(one["largest_levels"] or 1e9))[:LISTED]:
        if one["largest_levels"] is None:
            shapes = ("x".join(map(str, one[name])) for name in ("shape", "expected_shape"))
            yield "  [bold red]{}[/]: the array is {}, not {}".format(markup(one["picture"]), *shapes)
        else:
            yield (
                f"  [bold red]{markup(one['picture'])}[/]: {_levels(one['largest_levels'])} at most, "
                f"{number(one['mean_levels'])} on average"
            )
    for step in compared["steps"]:
        yield f"  [bold red]{step['step']}[/]: {markup(step['ours'])} in the manifest, {markup(step['theirs'])} in the arrays"
    if compared["steps"] and compared["remaining_levels"] is not None:
        yield f"  [dim]with these settings: {_levels(compared['remaining_levels'])} at most[/]"
    elif not compared["steps"]:
        yield "  [dim]no other setting explains the arrays[/]"


def _levels(value: float) -> str:
    return f"{value:.3g} gray levels"


def _not_compared(result: Result) -> Iterator[str]:
    """Yield a line for the nodes whose results were taken as given."""
    if names := result.get("random_nodes", ()):
        verb = "draws" if len(names) == 1 else "draw"
        listed = ", ".join(names[:LISTED]) + (" …" if len(names) > LISTED else "")
        yield (
            f"[yellow]the graph is random[/]: {count_of(len(names), 'node')} {verb} random numbers ({markup(listed)}); "
            "every side was given the same draw"
        )
    for one in result.get("unknown_nodes", ()):
        yield (
            f"[yellow]not verified[/]: {markup(one['node'])} ({markup(one['operator'])}); "
            "the truth does not know this operator: the runtime computed it, on the truth's operands"
        )


def _rows(backend: Result) -> Iterator[tuple[str, ...]]:
    relus = [(relu["node"], relu["scope"], relu) for relu in backend["relus"]]
    outputs = [(f"output {output['name']}", "", output) for output in backend["outputs"]]
    failed = [row for row in (*relus, *outputs) if row[2]["passed"] is False]
    # Where all Relus pass, the one nearest to the limit stands for them.
    listed = failed[:LISTED]
    if relus and not failed:
        listed = [max(relus, key=lambda row: row[2]["error_ratio"] or 0)]
    shown = [*listed, *(row for row in outputs[:MOST_ROWS] if row not in listed)]
    for name, scope, fields in shown:
        yield (
            markup(name),
            markup(scope),
            number(fields["max_abs"]),
            "" if fields["max_ulp"] is None else f"{fields['max_ulp']:,}",
            number(fields["error_ratio"]),
            DIM if fields["passed"] is None else GOOD if fields["passed"] else f"[bold red]NO[/] {markup(fields['reason'])}",
        )
    if len(failed) > LISTED:
        yield (f"[dim]and {len(failed) - LISTED} more, in --json and --html[/]",)
    if rest := rest_of(len(outputs)):
        yield (f"[dim]{rest}[/]",)


def _verdict(backend: Result) -> Iterator[str]:
    """Yield the lines of one backend below the table: verdict, faults, checks without a reference, what differs from the request."""
    compared = [relu for relu in backend["relus"] if relu["passed"] is not None]
    right = sum(relu["passed"] for relu in compared)
    note = f" ({markup(backend['note'])})" if backend["note"] else ""
    if backend["relus"]:
        # A fault behind the last Relu shows at the outputs only.
        place = "in" if right < len(compared) or all(one["passed"] for one in backend["outputs"]) else "at the outputs, in"
        verdict = f"[green]passed[/]: {right}" if backend["passed"] else f"[bold red]differs[/]: {place} {len(compared) - right}"
        yield f"{markup(backend['name'])}: {verdict} of {count_of(len(compared), 'Relu')}{_observed(backend)}{note}"
    else:
        verdict = "[green]passed[/]" if backend["passed"] else "[bold red]differs[/]"
        compared_at = "outputs compared" if note else "no Relu in the graph; outputs compared"
        yield f"{markup(backend['name'])}: {verdict}: {compared_at}{note}"
    for fault in backend["faults"][:LISTED]:
        place = "in the graph" if fault["where"] == "graph" else f"on {markup(fault['where'])}"
        scope = f" ({markup(fault['scope'])})" if fault["scope"] else ""
        yield f"  [bold red]at {markup(fault['node'])}[/]{scope}, {place}: {markup(fault['kind'])}: {markup(fault['detail'])}"
    for finding in backend.get("findings", ()):
        if finding["accepted"]:
            yield f"  [yellow]accepted[/]: {markup(finding['detail'])}"
        else:
            yield (
                f"  [bold red]{markup(finding['detail'])}[/], where IEEE 754's maximum, PyTorch and ONNX Runtime return NaN; "
                f"to accept it: --accept {finding['kind']}"
            )
    for check in backend["checks"]:
        if check["passed"] is False:
            yield f"  [bold red]{markup(check['name'])}[/]: {markup(check['detail'])}"
    if passed := [check for check in backend["checks"] if check["passed"]]:
        yield f"  [dim]without a reference: {markup(_invariants(passed))}[/]"
    for line in backend["delivered"]["differences"]:
        yield f"  [bold red]not as requested[/]: {markup(line)}"


def _observed(backend: Result) -> str:
    if backend["as_deployed"] is None:
        return ""
    if backend["as_deployed"]:
        return ", observed as deployed"
    deployed = sum(relu["as_deployed"] for relu in backend["relus"])
    return f", [yellow]{deployed} of them observed as deployed[/]"


def _invariants(checks: list[Result]) -> str:
    identical = [check["name"] for check in checks if check["detail"] == "bit-identical"]
    others = [f"{check['name']} ({check['detail']})" for check in checks if check["detail"] != "bit-identical"]
    return "; ".join([*([f"bit-identical for {', '.join(identical)}"] if identical else []), *others])
