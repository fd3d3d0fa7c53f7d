"""Accepting connections: all that wait in each turn of the event loop, and none that its client has reset already.

uvloop accepts one connection a turn. A client that opens thousands and resets them at once would fill the queue of the
listening socket, and every other client would wait until each of those had been set up, parsed, and answered in vain. A queue that
is full drops what comes next, whose client tries again a second later. So connections are accepted at once, and a few of them get
a protocol in each turn (`Arrivals`), so that the turns stay short.

A client that opens as many connections as the process can hold, and sends nothing, would keep all others out. So when no file
descriptor is left, the connections that have waited longest for their clients are closed, and so are the oldest TLS handshakes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from relu_deploy.serving.transport.arrivals import Arrivals, has_whole_request
from relu_deploy.serving.transport.limits import SHARE_CLOSED

__all__ = ["BACKLOG", "Acceptor", "Turn"]

#: connections that wait to be accepted
BACKLOG = 4096
#: connections whose first bytes are looked at in one turn at least: more than a turn accepts
LOOKED_AT_PER_TURN = 512
#: seconds until the next attempt where the process has no file descriptor left: after connections were closed, which takes a turn,
#: and where none could be
CLOSING_SECONDS, RETRY_SECONDS = 0.005, 0.1
#: seconds that a TLS handshake may take
HANDSHAKE_SECONDS = 10.0
#: seconds that handshakes may still take when the server stops
LAST_SECONDS = 1.0
#: what accept raises when the process or the machine cannot hold another connection
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class Turn:
    """What is done in one turn of the event loop.

    Attributes:
        seconds: That each socket accepts.
        opened: How many connections get a protocol; each takes a third of a millisecond until its request waits for its body.
    """

    seconds: float = 0.001
    opened: int = 16


class Acceptor:
    """Gives each connection of listening sockets a protocol. It stands for asyncio's server in uvicorn.

    Attributes:
        accepted: How many connections were accepted.
    """

    def __init__(
        self,
        bound: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        close_waiting: Callable[[], int] = lambda: 0,
        arrivals: Arrivals | None = None,
        turn: Turn = Turn(),  # it is frozen
    ) -> None:
        """Listen, and begin to accept in the running loop.

        Args:
            bound: The sockets, bound.
            protocol: Makes the protocol of one connection.
            tls: None for plain TCP.
            close_waiting: Closes some connections that wait for their clients, and returns how many.
            arrivals: Empty queues, None for those of HTTP.
            turn: How much is done in one turn.
        """
        self._bound, self._protocol, self._close_waiting, self._limits = bound, protocol, close_waiting, turn
        self._tls = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        self._loop = asyncio.get_running_loop()
        # What is encrypted tells nothing about requests.
        self._arrivals = Arrivals(has_whole_request if tls is None else bool) if arrivals is None else arrivals
        self.accepted = 0
        self._turn: asyncio.Handle | None = None
        #: connections that are getting a protocol, the oldest first
        self._opening: dict[asyncio.Task[None], None] = {}
        self._retries: dict[socket.socket, asyncio.TimerHandle] = {}
        for each in bound:
            each.setblocking(False)
            each.listen(BACKLOG)
            self._loop.add_reader(each, self._accept, each)

    def pause(self, seconds: float) -> None:
        """Accept no connections for some time. They wait meanwhile."""
        for each in self._bound:
            self._pause(each, seconds)

    def close(self) -> None:
        """Accept no more connections."""
        for retry in self._retries.values():
            retry.cancel()
        for each in self._bound:
            self._loop.remove_reader(each)
        # They were accepted, and may hold requests.
        self._arrivals.settle()
        self._open_arrivals(len(self._arrivals))

    async def wait_closed(self) -> None:
        """Wait until the connections that were accepted last have their protocol, and give up handshakes that take longer."""
        if self._opening:
            _, late = await asyncio.wait(self._opening, timeout=LAST_SECONDS)
            for task in late:
                task.cancel()

    def _pause(self, bound: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(bound)
        if (retry := self._retries.pop(bound, None)) is not None:
            retry.cancel()
        self._retries[bound] = self._loop.call_later(seconds, self._loop.add_reader, bound, self._accept, bound)

    def _accept(self, bound: socket.socket) -> None:
        end = time.perf_counter() + self._limits.seconds
        while True:
            try:
                connection, address = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.warning("cannot accept connections for now: %s", error.strerror)
                self._pause(bound, CLOSING_SECONDS if self._close_waiting() + self._close_handshakes() else RETRY_SECONDS)
                return
            self.accepted += 1
            connection.setblocking(False)
            self._arrivals.add(connection, address[0] if isinstance(address, tuple) else "")
            if self._turn is None:
                # Not now: what a client sends with its handshake arrives a moment later.
                self._turn = self._loop.call_soon(self._take_turn)
            if time.perf_counter() > end:
                return

    def _take_turn(self) -> None:
        self._open_arrivals(self._limits.opened)
        self._turn = self._loop.call_later(self._arrivals.settling(), self._take_turn) if len(self._arrivals) else None

    def _open_arrivals(self, most: int) -> None:
        """Give up to `most` of the connections that wait for one a protocol."""
        self._arrivals.sort(max(most, LOOKED_AT_PER_TURN))
        for _ in range(most):
            if (connection := self._arrivals.take()) is None:
                return
            task = self._loop.create_task(self._open(connection))
            self._opening[task] = None
            task.add_done_callback(self._opening.pop)

    def _close_handshakes(self) -> int:
        """Give up the oldest TLS handshakes, and return how many."""
        oldest = list(islice(self._opening, math.ceil(len(self._opening) * SHARE_CLOSED))) if self._tls else []
        for task in oldest:
            task.cancel()
        return len(oldest)

    async def _open(self, connection: socket.socket) -> None:
        # A client that leaves, or that speaks no TLS, is no event.
        with suppress(OSError, asyncio.TimeoutError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._protocol, connection, **self._tls)  # type: ignore[arg-type]
