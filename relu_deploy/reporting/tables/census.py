"""The table of `census`: one row a Relu, then totals and what they hold for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from relu_deploy.reporting.phrases import MOST_ROWS, count_of, first_names, rest_of
from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_census"]

Result = Mapping[str, Any]
COLUMNS = (
    *(">#", "node", "scope", "kind", ">channels", ">dead", ">proven", ">always on", ">proven"),
    *(">zeros", ">at bound", ">greatest"),
)


def print_census(result: Result) -> None:
    """Print what `census --json` writes."""
    table = new_table(*COLUMNS)
    for relu in result["relus"][:MOST_ROWS]:
        table.add_row(
            str(relu["index"]),
            markup(relu["node"]),
            markup(relu["scope"]),
            markup(relu["kind"]),
            f"{relu['channels']:,}",
            _count(relu["dead"], "bold red"),
            _count(relu["proven_dead"], "bold red"),
            _count(relu["always_on"], "yellow"),
            _count(relu["proven_always_on"], "yellow"),
            _share(relu["sparsity"]),
            _share(relu["saturated"]),
            "NaN" if relu["nan_channels"] else "-" if relu["maximum"] is None else f"{relu['maximum']:.3g}",
        )
    if result["relus"]:
        show(table)
    if rest := rest_of(len(result["relus"])):
        show(f"[dim]{rest}[/]")
    for line in _summary(result):
        show(line)


def _summary(result: Result) -> Iterator[str]:
    totals = result["totals"]
    yield (
        f"[bold]{markup(result['model'])}[/] on {count_of(totals['samples'], 'row')} of {markup(result['data'])}, "
        f"{markup(result['backend'])}: {count_of(totals['relus'], 'Relu')}, {count_of(totals['channels'], 'channel')}, "
        f"{totals['dead']:,} dead ({totals['proven_dead']:,} proven), "
        f"{totals['always_on']:,} always on ({totals['proven_always_on']:,} proven), {_share(totals['sparsity'])} zeros"
    )
    bounds = [relu["observed_bound"] for relu in result["relus"] if relu["observed_bound"] is not None]
    if totals["dead"] > totals["proven_dead"] and bounds:
        yield f"[dim]dead, not proven: fires on fewer than {bounds[0]:.2%} of such rows (95% confidence, if they are independent)[/]"
    yield from _scope_of_proofs(result["input_range"])
    if hidden := result.get("hidden"):
        yield f"[yellow]{count_of(len(hidden), 'Relu')} inside bodies cannot be observed: {markup(first_names(hidden))}[/]"
    if totals["left_over"]:
        rows = "row was" if totals["left_over"] == 1 else "rows were"
        yield f"[yellow]{totals['left_over']:,} {rows} left over: the model takes {result['batch']:,} at a time[/]"


def _scope_of_proofs(declared: Result | None) -> Iterator[str]:
    if declared is None:
        yield "[dim]proven: for any input at all, as its range is not known; declare it with --range LOW,HIGH[/]"
        return
    ranges = "; ".join(f"{name} in {_range(bounds)}" for name, bounds in declared["inputs"].items())
    yield f"[dim]proven: for every input with {markup(ranges)} (from: {markup(declared['source'])})[/]"
    if declared["rows_outside"]:
        rows = "row leaves" if declared["rows_outside"] == 1 else "rows leave"
        yield f"[yellow]{declared['rows_outside']:,} {rows} that range: nothing is proven about such inputs[/]"


def _range(bounds: Result) -> str:
    return f"{min(_numbers(bounds['low'])):.4g} to {max(_numbers(bounds['high'])):.4g}"


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in nested lists, or the one number that `value` is."""
    if isinstance(value, Iterable):
        for inner in value:
            yield from _numbers(inner)
    else:
        yield value


def _count(count: int, style: str) -> str:
    return f"[{style}]{count:,}[/]" if count else "0"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
