"""Whether a command has a time limit: without one, a graph whose Loops would run for minutes is refused.

`--timeout` ends the whole command, so whoever gives it has said how long a graph may take.
"""

from __future__ import annotations

__all__ = ["has_time_limit", "set_time_limit"]

_seconds: list[float] = []


def has_time_limit() -> bool:
    """Return whether this process is ended after some time: Loops of any length may run."""
    return bool(_seconds)


def set_time_limit(seconds: float | None) -> None:
    """Say after how many seconds this process is ended, None for never. It is not ended by this function."""
    _seconds[:] = [] if seconds is None else [seconds]
