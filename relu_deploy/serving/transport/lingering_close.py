"""Lingering close: how a connection ends while its client still sends.

A socket that is closed while bytes wait to be read is reset, and a reset takes with it an answer that the client has not
read yet (RFC 9112, section 9.6). Browsers send a whole body before they read the answer. So the sending side is closed
first, and what still arrives is discarded until the client closes, stops sending, or exceeds `LingerLimits`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from relu_deploy.serving.transport.limits import LingerLimits

__all__ = ["CloseHookTransport", "Lingering"]


class Lingering(asyncio.Protocol):
    """Takes a connection over from the protocol that has answered on it, and ends it."""

    def __init__(self, transport: Any, limits: LingerLimits, connection_lost: Callable[[Exception | None], None]) -> None:
        """connection_lost: the former protocol's, called when the connection has ended."""
        self._transport, self._limits, self._connection_lost = transport, limits, connection_lost
        self._loop = asyncio.get_running_loop()
        self._bytes_left, self._received = limits.size, True
        self._end = self._loop.time() + limits.seconds
        transport.set_protocol(self)
        # The next read finds out when the client has reset the connection.
        with suppress(OSError):
            transport.write_eof()
        self._timer = self._loop.call_later(min(limits.silence, limits.seconds), self._check)

    def data_received(self, data: bytes) -> None:
        self._received = True
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._connection_lost(exc)

    def _check(self) -> None:
        seconds_left = self._end - self._loop.time()
        if not self._received or seconds_left <= 0:
            self._transport.abort()
            return
        self._received = False
        self._timer = self._loop.call_later(min(self._limits.silence, seconds_left), self._check)


class CloseHookTransport:
    """A transport for one request's answer whose `close`, called when the answer is complete, is `end` instead."""

    def __init__(self, transport: Any, end: Callable[[], None]) -> None:
        self._transport, self.close = transport, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
