"""Markdown summaries of one table, for the page of a CI run."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.terminal import number, printable

__all__ = ["bench_summary", "verify_summary"]

Result = Mapping[str, Any]
#: characters that Markdown may give a meaning in a cell
_SPECIAL = re.compile(r"([\\`*_\[\]#|~@])")


def verify_summary(result: Result) -> str:
    """Return the summary of what `verify --json` writes: a row for each backend."""
    verdict = "passed" if result["passed"] else "failed"
    rows = [
        (
            backend["name"],
            "passed" if backend["passed"] else "**failed**",
            f"{sum(relu['passed'] is True for relu in backend['relus'])} of {len(backend['relus'])}",
            f"{sum(output['passed'] is True for output in backend['outputs'])} of {len(backend['outputs'])}",
            _largest_ratio(backend),
            _first_fault(backend),
        )
        for backend in result["backends"]
    ]
    if compared := result.get("preprocess"):
        steps = "; ".join(
            f"{one['step']}: {one['ours']} in the manifest, {one['theirs']} in the arrays" for one in compared["steps"]
        )
        rows.append(("preprocessing", "passed" if compared["passed"] else "**failed**", "", "", "", steps))
    head = ("backend", "verdict", "Relus", "outputs", "largest error ratio", "first divergence")
    return _document(f"verify {_plain(result['model'])}: {verdict}", head, rows, styled=(1,))


def bench_summary(result: Result) -> str:
    """Return the summary of what `bench --json` writes: a row for each run, with its change where it was compared."""
    changes = {_key(one): one for one in (result.get("comparison") or {}).get("rows", ())}
    rows = []
    for run in result["runs"]:
        latency, metric, change = run["latency_ms"], run["accuracy"], changes.get(_key(run))
        rows.append(
            (
                run["model"],
                f"{run['backend']} {run['variant']}".strip(),
                str(run["batch"]),
                number(latency["mean"]) if latency else "",
                number(run["throughput"]),
                _change(change),
                f"{metric['name']} {metric['value']:.4f}" if metric else "",
                run["error"] or {True: "yes", False: "**no**", None: "not checked"}[run["verified"]],
            )
        )
    head = ("model", "backend", "batch", "mean ms", "images/s", "time, new / old", "accuracy", "verified")
    return _document(f"bench: {'passed' if _bench_passed(result) else 'failed'}", head, rows, styled=(5, 7))


def _bench_passed(result: Result) -> bool:
    comparison = result.get("comparison")
    return bool(result["passed"] and (comparison is None or comparison["passed"]))


def _key(row: Result) -> tuple[Any, ...]:
    return row["model"], row["backend"], row["variant"], row["batch"]


def _change(change: Result | None) -> str:
    if change is None:
        return ""
    interval = change["ci95"]
    text = f"{change['ratio']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
    return f"**{text}**" if change["slower"] else text


def _largest_ratio(backend: Result) -> str:
    ratios = [one["error_ratio"] for one in (*backend["relus"], *backend["outputs"]) if one["error_ratio"] is not None]
    return number(max(ratios)) if ratios else ""


def _first_fault(backend: Result) -> str:
    if not backend["faults"]:
        return ""
    fault = backend["faults"][0]
    more = f" and {count_of(len(backend['faults']) - 1, 'more fault')}" if len(backend["faults"]) > 1 else ""
    return f"{fault['node']}: {fault['kind']}: {fault['detail']}{more}"


def _document(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], styled: Sequence[int]) -> str:
    """Return a heading and a table; cells in the columns `styled` are ours and may hold Markdown."""
    lines = [f"### relu-deploy {title}", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [cell if index in styled and cell.startswith("**") else _plain(cell) for index, cell in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Return text from elsewhere for a cell: neither Markdown nor HTML in it has a meaning."""
    return _SPECIAL.sub(r"\\\1", html.escape(printable(text), quote=False))
