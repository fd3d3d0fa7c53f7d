"""Waiting for the messages of calls: not for ever, and not for more calls than the server can hold.

gRPC begins a call when its headers have arrived and waits for its message without any limit, at ten kilobytes a call. So a call is
begun here before its message is there, and given up when the message does not arrive in time. Where too many wait, those that have
waited longest are given up first: the messages of other clients come with their headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from relu_deploy.serving.errors import DeadlineExceeded, InvalidArgument, Unavailable

__all__ = ["STREAM_OPTIONS", "MessageReceiver"]

#: calls of one connection at a time; clients keep further ones until one has ended
MOST_STREAMS = 128
#: calls that have begun and were not taken by the event loop yet, of all connections: beyond the first number, gRPC cancels some of
#: them, and beyond the second all, without asking whose they are
MOST_PENDING, ALL_PENDING = 10_000, 20_000
#: options of a gRPC server
STREAM_OPTIONS = (
    ("grpc.max_concurrent_streams", MOST_STREAMS),
    ("grpc.server.max_pending_requests", MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", ALL_PENDING),
)


class MessageReceiver:
    """Receives the messages of a server's calls. For the event loop's thread.

    Attributes:
        on_abandoned: Called with the peer when a call has ended because its client left before its message was there.
    """

    def __init__(self, seconds: float, most: int = 2000) -> None:
        """seconds: that a message may take. most: calls that may wait for theirs."""
        self._seconds, self._most = seconds, most
        self.on_abandoned: Callable[[str], None] = lambda _: None
        #: the time limits of the calls that wait, the oldest first
        self._waiting: dict[asyncio.Timeout, None] = {}

    async def receive(self, rpc: Any) -> bytes:
        """Return the message of a call. rpc: its context, of a method that takes a stream.

        Raises:
            DeadlineExceeded: If it does not arrive in time.
            Unavailable: If too many calls wait, and this one has waited longest.
            InvalidArgument: If the call has no message.
        """
        import grpc.aio

        is_oldest = False
        try:
            async with asyncio.timeout(self._seconds) as limit:
                self._waiting[limit] = None
                if len(self._waiting) > self._most:
                    self._give_up_oldest()
                try:
                    message = await rpc.read()
                finally:
                    is_oldest = self._waiting.pop(limit, limit) is limit
        except TimeoutError:
            if is_oldest:
                raise Unavailable("too many calls wait for their messages", "send them at once", retry_after=1.0) from None
            raise DeadlineExceeded(f"the message did not arrive within {self._seconds:g} s") from None
        except asyncio.CancelledError:
            self.on_abandoned(rpc.peer())
            raise
        if message is grpc.aio.EOF:
            self.on_abandoned(rpc.peer())  # what gRPC tells of a client that has left as well
            raise InvalidArgument("the call has no message")
        return bytes(message)

    def _give_up_oldest(self) -> None:
        oldest = next(iter(self._waiting))
        del self._waiting[oldest]
        oldest.reschedule(asyncio.get_running_loop().time())
