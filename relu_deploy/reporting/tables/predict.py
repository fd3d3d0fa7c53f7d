"""The predictions of `predict`, or the summary of what it wrote to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_predict"]

#: predictions of an input that the table shows, and inputs: laying out a row takes half a millisecond
LISTED, MOST_ROWS = 3, 1000


def print_predict(result: Mapping[str, Any]) -> None:
    """Print what `predict --json` writes."""
    if "rows" in result:
        table = new_table("input", "predictions")
        for row in result["rows"][:MOST_ROWS]:
            shown = f"[bold red]{markup(row['error'])}[/]" if "error" in row else markup(_predictions(row["predictions"]))
            table.add_row(markup(row["input"]), shown)
        show(table)
        if len(result["rows"]) > MOST_ROWS:
            show(f"[dim]and {len(result['rows']) - MOST_ROWS:,} more: --json and -o write all[/]")
    skipped = f", {result['skipped']:,} skipped that had a row" if result["skipped"] else ""
    failed = f", [bold red]{count_of(result['failed'], 'error')}[/]" if result["failed"] else ""
    done = result["predicted"] + result["failed"]
    speed = f", {done / result['seconds']:,.1f} a second" if done and result["seconds"] > 0 else ""
    out = f"[bold]{markup(result['out'])}[/]  " if result["out"] else ""
    show(f"{out}{markup(result['model'])} on {markup(result['backend'])}: {count_of(done, 'input')}{speed}{failed}{skipped}")


def _predictions(predictions: Sequence[Mapping[str, Any]]) -> str:
    texts = [f"{one['label']} {_value(one)}" for one in predictions[:LISTED]]
    more = f", and {len(predictions) - LISTED} more" if len(predictions) > LISTED else ""
    return (", ".join(texts) + more) or "nothing found"


def _value(one: Mapping[str, Any]) -> str:
    if "share" in one:
        return f"{one['share']:.1%}"
    if "box" in one:
        return f"{one['score']:.2f} at {', '.join(f'{edge:.0f}' for edge in one['box'])}"
    return f"{one['probability']:.4f}"
