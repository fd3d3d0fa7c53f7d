"""Progress on stderr: a line that changes on a terminal, separate lines elsewhere, nothing under `--quiet`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relu_deploy.reporting.terminal import printable

__all__ = ["Steps", "bar", "steps"]

#: seconds between two lines of a bar where there is no terminal
LINE_EVERY = 1.0


class Steps:
    """Shows which step is running: an object that is called with the description of the next step."""

    def __init__(self, show: Callable[[str], None], keep: Callable[[str], None] | None = None) -> None:
        self._show, self._keep = show, keep or show

    def __call__(self, line: str) -> None:
        """Show that the step `line` is running."""
        self._show(line)

    def keep(self, line: str) -> None:
        """Write a line that stays, such as a result."""
        self._keep(line)


@contextmanager
def steps(quiet: bool) -> Iterator[Steps]:
    """Show which step is running, with the time since the start.

    Args:
        quiet: Show nothing.

    Yields:
        A function of the description of the next step, with a method for lines that stay.
    """
    if quiet:
        yield Steps(lambda _: None)
        return
    started = time.monotonic()
    if not sys.stderr.isatty():

        def log(line: str) -> None:
            # A row of a benchmark has ten rounds; a log file needs the first one only.
            if ": round " not in line or ": round 1 " in line:
                print(f"[{time.monotonic() - started:6.1f} s] {printable(line)}", file=sys.stderr, flush=True)

        yield Steps(log)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True, emoji=False), transient=True) as progress:
        task = progress.add_task("")
        yield Steps(
            lambda line: progress.update(task, description=printable(line)),
            lambda line: progress.console.print(printable(line), markup=False, highlight=False),
        )


@contextmanager
def bar(quiet: bool, description: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done: a bar with the remaining time on a terminal, a line every tenth elsewhere.

    Args:
        quiet: Show nothing.
        description: What is being done.

    Yields:
        A function of (done, total).
    """
    if quiet:
        yield lambda *_: None
        return
    description = printable(description)
    if not sys.stderr.isatty():
        started = last = time.monotonic()
        tenth = 0

        def log(done: int, total: int) -> None:
            nonlocal tenth, last
            # Short tasks write no lines.
            if 10 * done // total > tenth and time.monotonic() - last >= LINE_EVERY:
                tenth, last = 10 * done // total, time.monotonic()
                print(f"[{time.monotonic() - started:6.1f} s] {description}: {tenth * 10} %", file=sys.stderr, flush=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, emoji=False), transient=True) as progress:
        task = progress.add_task(description)
        yield lambda done, total: progress.update(task, completed=done, total=total)
