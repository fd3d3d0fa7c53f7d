"""Progress on stderr: a line that changes on a terminal, a line each elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar", "steps"]

#: seconds between two lines of a bar where there is no terminal
LINE_EVERY = 1.0


@contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that says what happens next. On a terminal a spinner shows it with the time since the start."""
    if quiet:
        yield lambda _: None
        return
    started = time.monotonic()
    if not sys.stderr.isatty():

        def say(line: str) -> None:
            # Rounds come ten to a row: in a log file the first says enough.
            if ": round " not in line or ": round 1 " in line:
                print(f"[{time.monotonic() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda line: progress.update(task, description=line)


@contextmanager
def bar(quiet: bool, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that draws a bar with the time that is left; a line every tenth where no terminal is."""
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        started, tenth = time.monotonic(), 0
        told = started

        def say(done: int, total: int) -> None:
            nonlocal tenth, told
            # What is done in a moment needs no lines in a log file.
            if 10 * done // total > tenth and time.monotonic() - told >= LINE_EVERY:
                tenth, told = 10 * done // total, time.monotonic()
                print(f"[{time.monotonic() - started:6.1f} s] {what}: {tenth * 10} %", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)
