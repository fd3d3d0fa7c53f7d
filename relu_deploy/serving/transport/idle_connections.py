"""Closes connections that do nothing before a server has to refuse new ones, where a library holds the connections.

gRPC refuses what exceeds its limit of connections, and keeps those whose clients are silent. One client that opens as many as it may
would keep all others out. Linux counts the bytes that a connection has received and how long it has been silent, so the connections
can be found among the file descriptors of the process and closed. Elsewhere nothing is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from relu_deploy.serving.transport.descriptors import borrowed_socket, count_descriptors, descriptors
from relu_deploy.serving.transport.relay import peer_name

__all__ = ["IdleConnections"]

#: share of the connections of the limit that stay open
SHARE_KEPT = 1 / 2
#: seconds between two checks at least, and how many times as long as a search takes
INTERVAL, REST = 0.05, 5
#: milliseconds of silence before a connection is idle: its client may still be busy with a handshake
IDLE_MILLISECONDS = 200
#: bytes that a client sends before its first call at most: preface, settings and a ping
CALL_BYTES = 192
#: of struct tcp_info (linux/tcp.h): its size, the offsets of the milliseconds since data was sent and received and of the bytes
#: received, and the state of an open connection
INFO_SIZE, SENT_AT, HEARD_AT, RECEIVED_AT, ESTABLISHED = 136, 44, 52, 128, 1

log = logging.getLogger("relu_deploy.serve")


class IdleConnections:
    """Keeps room for new connections to a port of this process."""

    def __init__(self, port: int, most: int, is_busy: Callable[[str], bool]) -> None:
        """Begin without closing anything.

        Args:
            port: The port.
            most: Connections to it that may be open.
            is_busy: Whether the connection of the peer with this name stays open. Called in other threads.
        """
        self._port, self._kept, self._is_busy = port, int(most * SHARE_KEPT), is_busy

    async def keep_room(self) -> None:
        """Close idle connections whenever too many are open, until this is cancelled."""
        pause = INTERVAL
        while sys.platform == "linux":
            await asyncio.sleep(pause)
            pause = INTERVAL
            if self._has_many():
                began = time.perf_counter()
                if closed := await asyncio.to_thread(self.close_excess):
                    log.warning("closed %d idle gRPC connections to make room for new ones", closed)
                pause = max(INTERVAL, REST * (time.perf_counter() - began))

    def _has_many(self) -> bool:
        try:
            return count_descriptors() > self._kept
        except OSError:
            return True

    def close_excess(self) -> int:
        """Close idle connections until as many are open as may stay, and return how many.

        First those whose clients have never called, then those that have been silent longest.
        """
        try:
            numbers = descriptors()
        except OSError:  # no file descriptor is left for the list of them
            return 0
        found = [(number, *known) for number in numbers if (known := self._look(number)) is not None]
        excess = len(found) - self._kept
        if excess <= 0:
            return 0
        idle = [each for each in found if each[3] >= IDLE_MILLISECONDS and not self._is_busy(each[1])]
        idle.sort(key=lambda each: (each[2] > CALL_BYTES, -each[3]))
        return sum(self._close(number, peer) for number, peer, _, _ in idle[:excess])

    def _look(self, number: int) -> tuple[str, int, int] | None:
        """Return the peer, bytes received and milliseconds of silence of an open connection to the port, None for another file."""
        with suppress(OSError), borrowed_socket(number) as connection:
            if not self._is_ours(connection):
                return None
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE)
            if len(info) == INFO_SIZE and info[0] == ESTABLISHED:
                silent = min(struct.unpack_from("<I", info, place)[0] for place in (SENT_AT, HEARD_AT))
                return peer_name(connection.getpeername()), struct.unpack_from("<Q", info, RECEIVED_AT)[0], silent
        return None

    def _is_ours(self, connection: socket.socket) -> bool:
        address = connection.getsockname()
        # A socket of the machine itself has a path.
        return isinstance(address, tuple) and address[1] == self._port

    def _close(self, number: int, peer: str) -> bool:
        """End a connection, unless its file descriptor is another one's by now. Who holds it is notified as if the client had left."""
        with suppress(OSError), borrowed_socket(number) as connection:
            if self._is_ours(connection) and peer_name(connection.getpeername()) == peer:
                connection.shutdown(socket.SHUT_RDWR)
                return True
        return False
