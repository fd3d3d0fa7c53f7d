"""How a connection ends whose client still sends: that is read and thrown away for a while, so that the client gets its answer.

A socket that is closed while bytes wait to be read is reset, and a reset takes with it the answer that the client has not
read yet (RFC 9112, section 9.6). Browsers send a whole body before they look at the answer. So the sending side is closed
first, and the other one when the client closes, or says nothing any more, or goes on too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["CloseHookTransport", "LingerLimits", "Lingering"]


@dataclass(frozen=True)
class LingerLimits:
    """How long and how much is thrown away. seconds: in all; silence: seconds without a byte; size: bytes."""

    seconds: float = 30.0
    silence: float = 5.0
    size: int = 2**28


class Lingering(asyncio.Protocol):
    """Takes a connection over from the protocol that has answered on it, and ends it. lost: that protocol's `connection_lost`."""

    def __init__(self, transport: Any, patience: LingerLimits, lost: Callable[[Exception | None], None]) -> None:
        self._transport, self._patience, self._lost = transport, patience, lost
        self._loop = asyncio.get_running_loop()
        self._left, self._heard = patience.size, True
        self._end = self._loop.time() + patience.seconds
        transport.set_protocol(self)
        # A client that has reset the connection is gone, as the next read finds.
        with suppress(OSError):
            transport.write_eof()
        self._next = self._loop.call_later(min(patience.silence, patience.seconds), self._look)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        self._lost(exc)

    def _look(self) -> None:
        left = self._end - self._loop.time()
        if not self._heard or left <= 0:
            self._transport.abort()
            return
        self._heard = False
        self._next = self._loop.call_later(min(self._patience.silence, left), self._look)


class CloseHookTransport:
    """A transport for one request's answer: its `close`, which comes when the answer is complete, is `end`."""

    def __init__(self, transport: Any, end: Callable[[], None]) -> None:
        self._transport, self.close = transport, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
