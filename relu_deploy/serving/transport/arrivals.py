"""Connections that were accepted and have no protocol yet: who gets one first when many clients connect at once.

Accepting a connection is cheap; reading a request and running it is not. A client that opens thousands of connections and sends
slowly in each would make all others wait until each of its own had been set up. So those are opened first that have sent a whole
request, and among them, and among the others, one of each client address in turn.
"""

from __future__ import annotations

import ipaddress
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Arrivals", "has_whole_request", "network_of"]

#: bytes that are looked at, without being taken from the connection
LOOK = 2**16
#: of so many connections that are opened, one is taken from those without a whole request, so that they do not wait for ever
PORTION = 4
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


class Arrivals:
    """The queues of connections. `len` is how many there are."""

    def __init__(self, is_whole: Callable[[memoryview], bool], half_closed: bool = True, settle_seconds: float = 0.0) -> None:
        """Make empty queues.

        Args:
            is_whole: Whether the first bytes that a client has sent are all that it sends before it waits for the server.
            half_closed: Whether a client that has ended its side of the connection may wait for a response.
            settle_seconds: Until a connection is looked at: clients that leave at once have left by then.
        """
        self._is_whole, self._half_closed, self._settle_seconds = is_whole, half_closed, settle_seconds
        #: when each is looked at, of time.monotonic(), its client address, and the connection
        self._new: deque[tuple[float, str, socket.socket]] = deque()
        #: of one client address each, the next one first: those that have sent a whole request, and the others
        self._whole: dict[str, deque[socket.socket]] = {}
        self._others: dict[str, deque[socket.socket]] = {}
        self._count = self._taken = 0
        self._buffer = bytearray(LOOK)

    def __len__(self) -> int:
        return self._count

    def add(self, connection: socket.socket, address: str) -> None:
        """Add a connection that does not block, from a client address."""
        self._new.append((time.monotonic() + self._settle_seconds, network_of(address), connection))
        self._count += 1

    def settle(self) -> None:
        """Let all connections be looked at from now on."""
        self._new = deque((0.0, address, connection) for _, address, connection in self._new)

    def settling(self) -> float:
        """Return the seconds until there is a connection to look at or to take, 0.0 if there is one or none at all."""
        if self._whole or self._others or not self._new:
            return 0.0
        return max(0.0, self._new[0][0] - time.monotonic())

    def sort(self, most: int) -> None:
        """Look at up to `most` connections that were added and not looked at, and drop those that their clients have ended."""
        now = time.monotonic()
        for _ in range(min(most, len(self._new))):
            if self._new[0][0] > now:
                return
            _, address, connection = self._new.popleft()
            if (size := self._look(connection)) is None:
                self._drop(connection)
                continue
            is_whole = size == LOOK or (size > 0 and self._is_whole(memoryview(self._buffer)[:size]))
            (self._whole if is_whole else self._others).setdefault(address, deque()).append(connection)

    def take(self) -> socket.socket | None:
        """Return the next connection, None if there is none that was looked at. Those that their clients have ended are dropped."""
        self._taken += 1
        first, second = (self._others, self._whole) if self._taken % PORTION == 0 else (self._whole, self._others)
        while queues := first or second:
            address = next(iter(queues))
            queue = queues.pop(address)
            connection = queue.popleft()
            if queue:
                queues[address] = queue
            if self._look(connection) is not None:
                self._count -= 1
                return connection
            self._drop(connection)
        return None

    def _look(self, connection: socket.socket) -> int | None:
        """Return how many bytes have arrived, LOOK for more, and look at them; None if the client has ended the connection."""
        if not self._half_closed and _is_half_closed(connection):
            return None
        try:
            connection.getpeername()  # what a client sent before it reset the connection could still be read
            size = connection.recv_into(self._buffer, LOOK, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return None
        return size or None

    def _drop(self, connection: socket.socket) -> None:
        connection.close()
        self._count -= 1


def _is_half_closed(connection: socket.socket) -> bool:
    """Return whether the client sends no more, on Linux."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def network_of(address: str) -> str:
    """Return what one client has for itself: an IPv4 address, or the /64 network of an IPv6 address, which has any number of them."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or int(found) >> 64)


def has_whole_request(received: memoryview) -> bool:
    """Return whether `received`, the first bytes of a connection, is a whole HTTP request, or more than one."""
    begun = bytes(received)
    end = begun.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = begun[: end + 2]
    if CHUNKED.search(head):
        return begun.endswith(b"0\r\n\r\n")
    length = LENGTH.search(head)
    return length is None or len(begun) - end - 4 >= int(length[1])
