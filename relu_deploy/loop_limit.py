"""Whether this process ends the Loops of a graph that run for minutes.

A graph from elsewhere may hold a Loop that never ends. Commands without `--timeout` refuse or end it; whoever gives that option has said
how long the graph may take. The functions of the Python package run what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["limited_loops", "loops_are_limited"]

_limited = [False]


def loops_are_limited() -> bool:
    """Return whether Loops that run for minutes are refused or ended."""
    return _limited[0]


@contextmanager
def limited_loops(limited: bool) -> Iterator[None]:
    """Limit the Loops of this process inside the block, or not."""
    before, _limited[0] = _limited[0], limited
    try:
        yield
    finally:
        _limited[0] = before
