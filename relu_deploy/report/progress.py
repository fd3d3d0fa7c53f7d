"""Progress on stderr: a line that changes on a terminal, a line each elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["steps"]


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
