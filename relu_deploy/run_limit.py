"""Whether this process ends runs of a graph that may take for ever, and how.

A graph from elsewhere may hold a Loop that never ends, or matrix products that take days. Commands without `--timeout` refuse or end
it; whoever gives that option has said how long the graph may take. The functions of the Python package run what they are given.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from relu_deploy.errors import TooLong

__all__ = [
    "ALLOW_MORE",
    "LOOP_SECONDS",
    "end_overdue_runs",
    "ended_after",
    "ending_process",
    "limited_runs",
    "overdue",
    "runs_are_limited",
]

#: seconds that one run of a graph with Loops may take
LOOP_SECONDS = 30.0
#: seconds that one of another graph may take: its sizes may depend on what is fed
RUN_SECONDS = 3600.0
#: seconds between two looks at the clock
POLL_SECONDS = 0.25
#: what to do about a graph that takes too long
ALLOW_MORE = "say how long the command may take with --timeout, or use smaller inputs"

#: ends this process because of the given error
End = Callable[[TooLong], None]

_limited = [False]
_end: list[End] = []
#: when each block of `ended_after` is overdue, and what ends it then
_watched: dict[object, tuple[float, Callable[[], None]]] = {}


def runs_are_limited() -> bool:
    """Return whether graphs that run for minutes are refused or ended."""
    return _limited[0]


@contextmanager
def limited_runs(limited: bool) -> Iterator[None]:
    """Limit the runs of this process inside the block, or not."""
    before, _limited[0] = _limited[0], limited
    try:
        yield
    finally:
        _limited[0] = before


def end_overdue_runs(end: End) -> None:
    """Let a run that takes too long end this process, where the runtime cannot end the run.

    Args:
        end: Reports the error to whoever waits for this process, and ends it. It is called in another thread.
    """
    _end[:] = [end]


def overdue(title: str, backend: str, loops: bool = True) -> TooLong:
    """Return the error for a run of a graph that has taken longer than it may.

    Args:
        title: Name of the model.
        backend: Name of the backend.
        loops: Whether it has Loops or Scans.
    """
    has, seconds = (" has Loops, and", LOOP_SECONDS) if loops else (":", RUN_SECONDS)
    return TooLong(f"{title}{has} one run of it has taken longer than {seconds:g} s on {backend}", ALLOW_MORE)


@contextmanager
def ended_after(seconds: float, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` in another thread if the block takes longer than `seconds`, up to `POLL_SECONDS` later.

    One thread watches all blocks: to start one for each takes longer than many runs.
    """
    key = object()
    _watched[key] = time.monotonic() + seconds, end
    _watch()
    try:
        yield
    finally:
        _watched.pop(key, None)


@cache
def _watch() -> None:
    threading.Thread(target=_end_overdue, name="run limit", daemon=True).start()


def _begin_anew() -> None:
    _watch.cache_clear()
    _watched.clear()


# A process that is forked from this one has its objects, but not its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _end_overdue() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        for key, (deadline, end) in list(_watched.items()):
            if now > deadline and _watched.pop(key, None) is not None:
                end()


@contextmanager
def ending_process(title: str, backend: str, loops: bool = True, patience: float = 0.0) -> Iterator[None]:
    """End this process if the block, a run of a graph, takes longer than it may.

    Does nothing where runs are not limited, or where nobody waits for this process and could say why it has ended.

    Args:
        title: Name of the model.
        backend: Name of the backend.
        loops: Whether the graph has Loops or Scans.
        patience: Further seconds, in which the runtime may end the run by itself.
    """
    if not runs_are_limited() or not _end:
        yield
        return
    with ended_after((LOOP_SECONDS if loops else RUN_SECONDS) + patience, lambda: _end[0](overdue(title, backend, loops))):
        yield
