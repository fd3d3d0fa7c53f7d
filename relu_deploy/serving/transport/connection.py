"""One HTTP connection's manners, on top of uvicorn's protocol: how slow, how large, how it ends, and what is turned away.

uvicorn bounds neither the headers nor the time that they take, closes idle connections at once when it stops, and gives up
a request whose client has shut down its sending side. A client may do that and still wait for its answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relu_deploy.serving.protocol.http import ON_DISCONNECT
from relu_deploy.serving.transport.admission import AdmissionCheck, Refusal
from relu_deploy.serving.transport.lingering_close import CloseHookTransport, Lingering, LingerLimits
from relu_deploy.serving.transport.paused_connections import PausedConnections

__all__ = ["Connection", "ConnectionLimits"]

SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
MALFORMED = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
#: bytes of a body that arrives with its headers or soon after, and is skipped when the request is turned away
SKIPPED = 2**15
#: in the place of uvicorn's cycle, for a request that was answered without one
TURNED_AWAY: Any = SimpleNamespace(
    response_started=True, response_complete=True, keep_alive=True, message_event=SimpleNamespace(set=lambda: None)
)


@dataclass
class ConnectionLimits:
    """Shared by all connections of a server. draining: the server is going down, and each answer is its connection's last.

    header_seconds: until the headers of a request are complete. header_bytes: at most. grace: seconds that an idle
    connection is kept while draining, because a request may be on its way. turn: what is turned away at the door.
    hall: where it then waits. patience: with who still sends when the answer is complete.
    """

    header_seconds: float = 10.0
    header_bytes: int = 2**16
    grace: float = 0.5
    draining: bool = False
    turn: AdmissionCheck = lambda *_: None
    hall: PausedConnections = field(default_factory=PausedConnections)
    patience: LingerLimits = field(default_factory=LingerLimits)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with manners."""

    def __init__(self, manners: ConnectionLimits, **given: Any) -> None:
        super().__init__(**given)
        self._manners = manners
        self._header_bytes = 0
        self._waiting_for: asyncio.Future[Any] | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._has_ended = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._slow = self.loop.call_later(self._manners.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        if self._waiting_for is not None:
            self._waiting_for.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ON_DISCONNECT: self._leave_with}  # type: ignore[dict-item]

    def _leave_with(self, future: asyncio.Future[Any]) -> None:
        self._waiting_for = future

    def data_received(self, data: bytes) -> None:
        if self._is_idle():
            if self._slow is None:
                self._slow = self.loop.call_later(self._manners.header_seconds, self._too_slow)
            self._header_bytes += len(data)
            if self._header_bytes > self._manners.header_bytes and b"\r\n\r\n" not in data:
                self._refuse(LONG, b'{"error":"the headers are too long"}')
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # uvicorn's words are not JSON  # noqa: ARG002  # uvicorn's words are not JSON
        self._refuse(MALFORMED, b'{"error":"this is not an HTTP request"}')

    def on_headers_complete(self) -> None:
        self._in_time()
        if self._can_be_turned_away():
            client = self.client[0] if self.client else ""
            refusal = self._manners.turn(self.parser.get_method(), self.url, client, self.headers)
            if refusal is not None:
                self._turn_away(refusal)
                return
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = CloseHookTransport(self.transport, self._end)  # type: ignore[assignment]  # all that it needs
            if self._manners.draining:
                self.cycle.keep_alive = False

    def _end(self) -> None:
        """Close after the answer; but while the client still sends, closing would take the answer from it."""
        if self.cycle.more_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        if self._has_ended or not self._is_idle() or self.transport.is_closing() or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.flow.resume_reading()
            Lingering(self.transport, self._manners.patience, self.connection_lost)

    def on_message_complete(self) -> None:
        # The body of a request that was turned away is no header that is slow to arrive.
        self._in_time()
        super().on_message_complete()

    def _can_be_turned_away(self) -> bool:
        """Return whether all that is left of the request can be skipped, and the connection then used again."""
        if not self._is_idle() or self._manners.draining or self.expect_100_continue or not self.parser.should_keep_alive():
            return False
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return length.isdigit() and int(length) <= SKIPPED and self.parser.get_http_version() == "1.1"

    def _turn_away(self, refusal: Refusal) -> None:
        self.cycle = TURNED_AWAY
        self.transport.write(refusal.answer)
        self.on_response_complete()
        self.flow.pause_reading()
        self._manners.hall.hold(self._read_on, refusal.room)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own signature
        self._has_ended = True
        if self._is_idle():
            return None
        # Whoever has closed altogether answers this with a reset, and is gone; whoever still listens skips it.
        if not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.cycle.keep_alive = False
        return True

    def shutdown(self) -> None:
        if self._is_idle():
            # A request may wait in a connection that is not read.
            self._read_on()
            self.loop.call_later(self._manners.grace, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle() and self._slow is None and not self.transport.is_closing():
            self.transport.close()

    def _too_slow(self) -> None:
        # A connection that has sent nothing is merely idle.
        self._slow = None
        if self._header_bytes:
            self._refuse(SLOW, b'{"error":"the headers did not arrive in time"}')
        elif not self.transport.is_closing():
            self.transport.close()

    def _in_time(self) -> None:
        self._header_bytes = 0
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _refuse(self, head: bytes, body: bytes) -> None:
        self._in_time()
        if not self.transport.is_closing():
            self.transport.write(head % (len(body), body))
            self._linger()
