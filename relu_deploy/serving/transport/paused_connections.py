"""Where connections wait that were refused: not read until their time is over, or there is room again.

Retry-After names at least a second. Who asks again at once all the same would only be refused again, and each refusal takes
time from what was let in. But nobody is kept out of a server that has room: as soon as less than half of a queue is
taken, as many are read again as fit into it, who came first first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["PausedConnections"]


class PausedConnections:
    """seconds: that a connection is not read at most. every: seconds between two looks at whether there is room."""

    def __init__(self, seconds: float = 1.0, every: float = 0.01) -> None:
        self._seconds, self._every = seconds, every
        self._waiting: dict[Callable[[], int], deque[tuple[float, Callable[[], None]]]] = {}
        self._looks = False

    def hold(self, read_on: Callable[[], None], room: Callable[[], int]) -> None:
        """Call `read_on` in time. room: how many more its queue takes, 0 while that is more than half full."""
        loop = asyncio.get_running_loop()
        self._waiting.setdefault(room, deque()).append((loop.time() + self._seconds, read_on))
        if not self._looks:
            self._looks = True
            loop.call_later(self._every, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for room, waiting in list(self._waiting.items()):
            fit = room()
            while waiting and (fit > 0 or waiting[0][0] <= now):
                waiting.popleft()[1]()
                fit -= 1
            if not waiting:
                del self._waiting[room]
        self._looks = bool(self._waiting)
        if self._looks:
            loop.call_later(self._every, self._look)
