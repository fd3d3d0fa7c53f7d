"""Connections whose request was refused: not read until a pause is over, or the queue has room again.

Retry-After names at least a second. A client that retries at once all the same would only be refused again, and each refusal
takes time from admitted requests. But no client waits while there is room: as soon as a queue is less than half full, as many
connections are read again as fit into it, in the order in which they were paused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["PausedConnections"]


class PausedConnections:
    """The paused connections of a server, by queue."""

    def __init__(self, seconds: float = 1.0, interval: float = 0.01) -> None:
        """seconds: that a connection is paused at most. interval: seconds between two checks for room."""
        self._seconds, self._interval = seconds, interval
        self._paused: dict[Callable[[], int], deque[tuple[float, Callable[[], None]]]] = {}
        self._checking = False

    def hold(self, resume: Callable[[], None], free_slots: Callable[[], int]) -> None:
        """Call `resume` when the pause is over.

        Args:
            resume: Reads the connection again.
            free_slots: Returns how many more requests the connection's queue takes, 0 while it is more than half full.
        """
        loop = asyncio.get_running_loop()
        self._paused.setdefault(free_slots, deque()).append((loop.time() + self._seconds, resume))
        if not self._checking:
            self._checking = True
            loop.call_later(self._interval, self._check)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for free_slots, paused in list(self._paused.items()):
            free = free_slots()
            while paused and (free > 0 or paused[0][0] <= now):
                paused.popleft()[1]()
                free -= 1
            if not paused:
                del self._paused[free_slots]
        self._checking = bool(self._paused)
        if self._checking:
            loop.call_later(self._interval, self._check)
