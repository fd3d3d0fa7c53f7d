"""A few threads beside the event loop, for work that would hold it up; what waits for one is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from relu_deploy.serving.errors import Unavailable

__all__ = ["BoundedExecutor"]

T = TypeVar("T")


class BoundedExecutor:
    """Runs functions in at most `threads` threads. Of those that wait, `waiting` are kept and more are refused."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, f"relu-deploy {name}")
        self._most = threads + waiting
        self._lock = threading.Lock()
        self._pending = 0

    async def run(self, on_disconnect: Callable[[asyncio.Future[Any]], None], function: Callable[..., T], *arguments: Any) -> T:
        """Return the function's result. leaving: as for `Model.infer`.

        Raises Busy when too many wait, else what the function raises.
        """
        with self._lock:
            if self._pending >= self._most:
                raise Unavailable(f"{self._pending} pictures are waiting already", "try again later", retry_after=1.0)
            self._pending += 1
        future = self._pool.submit(function, *arguments)
        # Not when the caller stops waiting: a thread that has begun goes on, and still takes its place.
        future.add_done_callback(self._finished)
        result = asyncio.wrap_future(future)
        on_disconnect(result)
        return await result

    def close(self) -> None:
        """Wait for what has begun; what has not is cancelled."""
        self._pool.shutdown(cancel_futures=True)

    def _finished(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
