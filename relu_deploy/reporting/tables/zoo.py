"""The table of `zoo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.terminal import markup, new_table, show

__all__ = ["print_zoo"]


def print_zoo(result: Mapping[str, Any]) -> None:
    """Print one row a model of what `zoo --json` writes."""
    table = new_table("model", "task", "activation", ">parameters", "input", "weights", "metric")
    for model in result["models"]:
        metric = model["metric"]
        table.add_row(
            markup(model["name"]),
            markup(model["task"]),
            markup(model["activation"]),
            f"{model['parameters']:,}",
            "x".join(map(str, model["input"]["shape"])),
            markup(model["weights"] or ("published" if model["published"] else "random")),
            markup(f"{metric['name']} {metric['value']:.4f} on {metric['on']}") if metric else "",
        )
    show(table)
    show('"published": export NAME --weights published downloads torchvision\'s; without --weights they are random')
