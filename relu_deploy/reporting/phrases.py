"""Phrases that the terminal and the HTML pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["count_of", "first_names", "program_verdict", "shapes_of", "verdict_phrase"]

#: names that one line lists
LISTED = 3


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 Relu", "6 Relus", "1,204 rows".

    Args:
        count: How many there are.
        noun: The singular.
        plural: The plural where it is not the singular with an "s".
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def shapes_of(inputs: Mapping[str, Any]) -> str:
    """Return the shapes of a model's inputs, for instance "x 1x3x224x224".

    Args:
        inputs: The field `inputs` of what `verify --json` writes.
    """
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs["shapes"].items())


def first_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are: "conv1, conv2, conv3 and 4 more"."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def program_verdict(result: Mapping[str, Any]) -> str:
    """Return in words what is known of a graph and its PyTorch program, "" where it was verified against the program or has none.

    Args:
        result: What `verify --json` writes.
    """
    verdict = result.get("program_verdict")
    if verdict and result["against"] != "torch":
        return verdict_phrase(verdict)
    reason = result.get("program_unknown")
    return f"whether the graph agrees with its PyTorch program is unknown: {reason}" if reason else ""


def verdict_phrase(verdict: Mapping[str, Any]) -> str:
    """Return in words what `export` found when it compared a graph with its PyTorch program."""
    compared = f"{count_of(verdict['relus'], 'Relu')} and {count_of(verdict['outputs'], 'output')}"
    if not verdict["passed"]:
        return f"the graph differs from its PyTorch program: at {verdict['first_divergence']}, of {compared}"
    made_by = verdict["made_by"]
    return (
        f"the graph agrees with its PyTorch program: {compared}, error ratio {verdict['error_ratio'] or 0:.3g} at most "
        f"(compared by export, with torch {made_by.get('torch', 'unknown')})"
    )
