"""Phrases that the terminal and the HTML pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MOST_ROWS", "count_of", "first_names", "listed", "program_verdict", "rest_of", "shapes_of", "verdict_phrase"]

#: names that one line lists, and inputs or outputs
LISTED, MOST_SPECS = 3, 16
#: rows of a table or page: laying out a hundred thousand takes minutes, and nobody reads them
MOST_ROWS = 1000


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
    return listed([f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs["shapes"].items()])


def listed(phrases: Sequence[str]) -> str:
    """Return phrases about inputs or outputs in a line, `MOST_SPECS` of them at most and how many more there are."""
    more = f" and {len(phrases) - MOST_SPECS:,} more" if len(phrases) > MOST_SPECS else ""
    return ", ".join(phrases[:MOST_SPECS]) + more


def rest_of(count: int) -> str:
    """Return what stands below a table of `count` rows of which the first `MOST_ROWS` are shown, "" if these are all."""
    return f"and {count - MOST_ROWS:,} more, in --json" if count > MOST_ROWS else ""


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
