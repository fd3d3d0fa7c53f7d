"""Find the nodes that a user excludes from a lower precision, by name or pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from relu_deploy.errors import UsageError
from relu_deploy.graph.bodies import iterate_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EXCLUDED", "check_patterns", "excluded_nodes"]

#: the reason in the report
EXCLUDED = "excluded"
#: names that a hint lists
LISTED = 3


def check_patterns(models: Iterable[ir.Model], patterns: Sequence[str]) -> None:
    """Raise UsageError for a pattern that matches no node of `models`; the hint has the nearest names."""
    names = list(dict.fromkeys(name for model in models for name in _names(model)))
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            close = get_close_matches(pattern, names, n=LISTED, cutoff=0.4)
            listed = ", ".join(map(repr, close or names[:LISTED]))
            raise UsageError(
                f"--exclude {pattern}: no node has such a name",
                f"did you mean {listed}?" if close else f"nodes are called, for instance, {listed}",
            )


def excluded_nodes(original: ir.Model, prepared: ir.Model, patterns: Sequence[str]) -> dict[str, str]:
    """Return the nodes of the top graph of `prepared` that `patterns` exclude, with the reason.

    A node of `original` that preparation merged into another one excludes the node that gives its tensor now.

    Args:
        original: The model that the user knows.
        prepared: The graph that is converted.
        patterns: Names, or patterns with `*`, `?` and `[...]`.
    """
    makers = {str(value.name): str(node.name) for node in prepared.graph for value in node.outputs}
    named = {str(node.name) for node in prepared.graph}
    found = {name for name in named if any(_matches(name, pattern) for pattern in patterns)}
    for node in original.graph:
        if any(_matches(str(node.name), pattern) for pattern in patterns):
            found |= {makers[str(value.name)] for value in node.outputs if str(value.name) in makers}
    return {str(node.name): EXCLUDED for node in prepared.graph if str(node.name) in found}


def _names(model: ir.Model) -> list[str]:
    return [str(node.name) for node, _ in iterate_nodes(model)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
