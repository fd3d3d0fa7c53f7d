"""One HTTP connection, on top of uvicorn's protocol: limits on headers and trailers, graceful close, early refusals, and turns.

uvicorn bounds neither the headers nor the time that they take, closes idle connections at once when it stops, and gives up
a request whose client has shut down its sending side. A client may do that and still wait for its answer. It also loses the
body behind an Upgrade header, which is ignored here (RFC 9110, section 7.8).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relu_deploy.serving.protocol.routes import CONTEXT, RequestContext, parse_route
from relu_deploy.serving.transport.admission import EarlyAdmission, Refusal
from relu_deploy.serving.transport.limits import SHARE_CLOSED, HttpLimits
from relu_deploy.serving.transport.lingering_close import CloseHookTransport, Lingering
from relu_deploy.serving.transport.paused_connections import PausedConnections
from relu_deploy.serving.transport.sliced_input import InputFlow, SlicedInput

__all__ = ["Connection", "ConnectionSettings", "close_longest_waiting"]

ERROR = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
SLOW = (b"408 Request Timeout", b'{"error":"the headers did not arrive in time"}')
TOO_LONG = (b"431 Request Header Fields Too Large", b'{"error":"the headers are too long"}')
CUT_SHORT = (b"400 Bad Request", b'{"error":"the connection ended before the body of the request"}')
MALFORMED = (b"400 Bad Request", b'{"error":"this is not an HTTP request"}')
#: bytes of a body that the application is given before all of it has arrived
WAKING_BYTES = 2**12
#: bytes of the largest body that is skipped when its request is refused early
MAX_SKIPPED = 2**15
log = logging.getLogger("relu_deploy.serve")


#: in place of uvicorn's cycle, for a request that was refused without one, and when the connection has ended
REFUSED_CYCLE: Any = SimpleNamespace(
    response_started=True, response_complete=True, keep_alive=True, message_event=SimpleNamespace(set=lambda: None)
)


def _with_host_of(url: Any, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return `headers` with the host of an absolute URL in place of the one in Host, as RFC 9112, section 3.2.2, requires."""
    host = url.host if b":" not in url.host else b"[%b]" % url.host
    host += b"" if url.port is None else b":%d" % url.port
    return [(name, host if name == b"host" else value) for name, value in headers]


@dataclass
class ConnectionSettings:
    """What all connections of a server share.

    Attributes:
        limits: On headers, and on the end of a connection.
        admit_early: Decides on a request whose headers are complete.
        paused: Where connections go whose request was refused early.
        draining: The server is shutting down, and each answer is its connection's last.
    """

    limits: HttpLimits = field(default_factory=HttpLimits)
    admit_early: EarlyAdmission = lambda _: None
    paused: PausedConnections = field(default_factory=PausedConnections)
    draining: bool = False


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within `HttpLimits`."""

    def __init__(self, settings: ConnectionSettings, **options: Any) -> None:
        """options: uvicorn's own."""
        super().__init__(**options)
        self._settings = settings
        #: bytes received since the last complete headers, part of a body, or complete message
        self._unframed_bytes = 0
        self._headers_complete = False
        self._ignored_upgrade = False
        self._priming = False
        self._pending: asyncio.Future[Any] | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._received_eof = False
        #: what follows the request in progress is no request: its answer is the last
        self._ends = False
        #: the loop's time since which it waits for its client, unless it answers a request
        self.waits_since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.waits_since = self.loop.time()
        self.flow = self._flow = InputFlow(transport)
        self._input = SlicedInput(self._flow, self._parse, self._may_parse, self._input_drained)
        self._header_timer = self.loop.call_later(self._settings.limits.header_seconds, self._headers_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._input.end()
        self._stop_header_timer()
        if self._pending is not None:
            self._pending.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._break_cycles()

    def _break_cycles(self) -> None:
        """Let go of what refers back to the connection: then it is freed at once, with the 256 KiB that uvloop holds for TLS.

        Full garbage collections may be a minute apart.
        """
        if self.cycle is not None:
            self.cycle.transport = self.transport
            self.cycle = REFUSED_CYCLE
        self.pipeline.clear()
        self.scope = self._pending = None  # type: ignore[assignment]  # uvicorn begins without a scope, too

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.waits_since = self.loop.time()
        self._input.add(data)

    def _may_parse(self) -> bool:
        return not self.pipeline and not self.transport.is_closing()

    def _parse(self, data: memoryview) -> None:
        if self._is_idle() and self._header_timer is None:
            self._header_timer = self.loop.call_later(self._settings.limits.header_seconds, self._headers_too_slow)
        self._unframed_bytes += len(data)
        self._feed(data)
        if self._unframed_bytes > self._settings.limits.header_bytes and self.parser is not None:
            self._reject(TOO_LONG)

    def _feed(self, data: memoryview) -> None:
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    # The parser stops behind the headers; another one reads the body and what follows.
                    self._replace_parser()
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            client = self.client[0] if self.client else ""
            log.info("malformed request", extra={"fields": {"client": client, "reason": str(error)[:200]}})
            self._reject(MALFORMED)

    def _replace_parser(self) -> None:
        """Replace the parser by one that is at the same place of the request, but has seen no Upgrade header."""
        self.parser = httptools.HttpRequestParser(self)
        framing = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        if self._ignored_upgrade and framing:
            self._priming = True
            head = b"".join(b"%b: %b\r\n" % header for header in framing)
            try:
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
            finally:
                self._priming = False
        self._ignored_upgrade = False

    def on_message_begin(self) -> None:
        if not self._priming:
            self._headers_complete = False
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._priming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are read and dropped.
        if not self._priming and not self._headers_complete:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        self._input.body_left = max(0, self._input.body_left - len(body))
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        # The application takes whole bodies only: a client that sends a byte at a time shall not wake it for each.
        if len(cycle.body) >= WAKING_BYTES:
            cycle.message_event.set()

    def on_headers_complete(self) -> None:
        if self._priming:
            return
        self._stop_header_timer()
        self._headers_complete, self._ignored_upgrade = True, self.parser.should_upgrade() and self._has_body()
        self._input.body_left = self._content_length() or 0
        context = self._new_context()
        if self._can_refuse_early() and (refusal := self._settings.admit_early(context)) is not None:
            self._refuse(refusal)
            return
        self.scope["extensions"] = {CONTEXT: context}  # type: ignore[dict-item]  # the ASGI server's own extension
        super().on_headers_complete()
        # After the request's task has run for the first time: by then a body that came with the headers has been read.
        self.loop.call_soon(context.release_unless_complete)
        if self.cycle is not None:
            self.cycle.transport = CloseHookTransport(self.transport, self._end)  # type: ignore[assignment]  # all that it needs
            if self._settings.draining:
                self.cycle.keep_alive = False

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ") != b"")
            for name, value in self.headers
        )

    def _content_length(self) -> int | None:
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return int(length) if length.isdigit() else None

    def _new_context(self) -> RequestContext:
        method, url = self.parser.get_method().decode("ascii"), httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        path = unquote(path) if "%" in path else path
        return RequestContext(
            method=method,
            path=path,
            client=self.client[0] if self.client else "",
            headers=self.headers if url.host is None else _with_host_of(url, self.headers),
            route=parse_route(method, path),
            cancel_on_disconnect=self._cancel_on_disconnect,
            http_version=self.parser.get_http_version(),
        )

    def _cancel_on_disconnect(self, future: asyncio.Future[Any]) -> None:
        self._pending = future

    def _end(self) -> None:
        """Close after the answer; but while the client still sends, or has sent more, closing would take the answer from it."""
        if self.pipeline or self._ends:
            # The next request has been parsed, but not begun.
            self.pipeline.clear()
            self._ends, self.cycle = False, REFUSED_CYCLE
            self._linger()
        elif self.cycle.more_body or self._input:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._input.end()
        if self._received_eof or not self._is_idle() or self.transport.is_closing() or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self._flow.read_on()
            Lingering(self.transport, self._settings.limits.linger, self.connection_lost)

    def on_message_complete(self) -> None:
        if self._ignored_upgrade:
            return  # the parser believes that an upgraded message has no body
        # The body of a request that was refused early must not count as headers that are slow to arrive.
        self._stop_header_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._ends and not self.pipeline:
            if not self.transport.is_closing():
                self._end()
            return
        super().on_response_complete()
        self.waits_since = self.loop.time()
        self._input.proceed()

    def _can_refuse_early(self) -> bool:
        """Return whether the rest of the request can be skipped, and the connection then be used again."""
        if not self._is_idle() or self._settings.draining or self.expect_100_continue or not self.parser.should_keep_alive():
            return False
        length = self._content_length()
        return length is not None and length <= MAX_SKIPPED and self.parser.get_http_version() == "1.1"

    def _refuse(self, refusal: Refusal) -> None:
        self.cycle = REFUSED_CYCLE
        self.transport.write(refusal.response)
        self.on_response_complete()
        self.flow.pause_reading()
        self._settings.paused.hold(self._resume, refusal.free_slots)

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own signature
        self._received_eof = True
        if self._input or self._ends:
            return True  # requests before this end are answered first
        if self._is_idle():
            return None
        if self.cycle.more_body and not self.cycle.response_started:
            # The rest of the body can never arrive.
            self._reject(CUT_SHORT)
            return None
        # A client that has closed altogether answers this with a reset; one that still listens skips it.
        if not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.cycle.keep_alive = False
        return True

    def _input_drained(self) -> None:
        if self._received_eof and not self.eof_received():
            self.transport.close()

    def shutdown(self) -> None:
        if self._is_idle():
            # A request may wait in a connection that is not read.
            self._resume()
            self.loop.call_later(self._settings.limits.idle_seconds, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def close_waiting(self) -> bool:
        """Close the connection if it waits for its client, for a request or the rest of one, and return whether it did."""
        waits = not self._input and (self._is_idle() or (self.cycle.more_body and not self.cycle.response_started))
        if waits:
            # At once: a shutdown of TLS waits for the client.
            self.transport.abort()
        return waits

    def _is_idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self._ends)

    def _close_if_idle(self) -> None:
        if self._is_idle() and not self._input and self._header_timer is None and not self.transport.is_closing():
            self.transport.close()

    def _headers_too_slow(self) -> None:
        # A connection that has sent nothing is merely idle.
        self._header_timer = None
        if self._unframed_bytes:
            self._reject(SLOW)
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_header_timer(self) -> None:
        self._unframed_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _reject(self, error: tuple[bytes, bytes]) -> None:
        """Answer with a status line and a body, and close. While an earlier request is in progress, close after its answer instead."""
        self._stop_header_timer()
        if self.pipeline or not (self._is_idle() or self.cycle.more_body):
            # The error would be taken for the answer to that request.
            self._ends = True
            self._input.end()
            if self.pipeline and self.cycle.more_body:
                self.pipeline.popleft()  # the last request that has begun: the rest of it is missing
                self.cycle = self.pipeline[0][0] if self.pipeline else REFUSED_CYCLE
        elif not self.transport.is_closing():
            self.transport.write(ERROR % (error[0], len(error[1]), error[1]))
            self._linger()


def close_longest_waiting(connections: Collection[Any]) -> int:
    """Close some of the connections that wait for their clients, those that have waited longest, and return how many.

    Args:
        connections: Of type Connection.
    """
    closed = 0
    most = math.ceil(len(connections) * SHARE_CLOSED)
    for connection in sorted(connections, key=lambda one: one.waits_since):
        if closed >= most:
            break
        closed += connection.close_waiting()
    return closed
