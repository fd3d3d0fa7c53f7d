"""A thread pool beside the event loop whose queue is bounded."""

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
    """Runs functions in threads."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        """threads: how many run at a time. waiting: how many more may wait; further ones are refused."""
        self._pool = ThreadPoolExecutor(threads, f"relu-deploy {name}")
        self._most = threads + waiting
        self._lock = threading.Lock()
        self._pending = 0

    async def run(self, on_disconnect: Callable[[asyncio.Future[Any]], None], function: Callable[..., T], *arguments: Any) -> T:
        """Return the function's result.

        Args:
            on_disconnect: Called with a future that is to be cancelled when the client disconnects.
            function: Runs in a thread.
            arguments: Its arguments.

        Raises:
            Unavailable: If too many wait.
        """
        with self._lock:
            if self._pending >= self._most:
                raise Unavailable(f"{self._pending} pictures wait for being decoded", "try again later", retry_after=1.0)
            self._pending += 1
        future = self._pool.submit(function, *arguments)
        # Not when the caller stops waiting: a function that has begun runs on, and still counts.
        future.add_done_callback(self._finished)
        result = asyncio.wrap_future(future)
        on_disconnect(result)
        return await result

    def close(self) -> None:
        """Wait for the functions that run; those that wait are cancelled."""
        self._pool.shutdown(cancel_futures=True)

    def _finished(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
