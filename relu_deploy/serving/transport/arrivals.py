"""Connections that were accepted and have no protocol yet: who gets one first when many clients connect at once.

Accepting a connection is cheap; reading a request and running it is not. A client that opens thousands of connections and sends
slowly in each would make all others wait until each of its own had been set up. So those are opened first that have sent a whole
request, and among them, and among the others, one of each client address in turn.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections import deque

__all__ = ["Arrivals", "has_whole_request", "network_of"]

#: bytes that are looked at, without being taken from the connection
LOOK = 2**16
#: of so many connections that are opened, one is taken from those without a whole request, so that they do not wait for ever
PORTION = 4
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


class Arrivals:
    """The queues of connections. `len` is how many there are."""

    def __init__(self, encrypted: bool) -> None:
        """encrypted: what a connection sends is TLS, and tells nothing about requests."""
        self._encrypted = encrypted
        self._new: deque[tuple[str, socket.socket]] = deque()
        #: of one client address each, the next one first: those that have sent a whole request, and the others
        self._whole: dict[str, deque[socket.socket]] = {}
        self._others: dict[str, deque[socket.socket]] = {}
        self._count = self._taken = 0
        self._buffer = bytearray(LOOK)

    def __len__(self) -> int:
        return self._count

    def add(self, connection: socket.socket, address: str) -> None:
        """Add a connection that does not block, from a client address."""
        self._new.append((network_of(address), connection))
        self._count += 1

    def sort(self, most: int) -> None:
        """Look at up to `most` connections that were added and not looked at, and drop those that their clients have ended."""
        for _ in range(min(most, len(self._new))):
            address, connection = self._new.popleft()
            try:
                connection.getpeername()  # what a client sent before it reset the connection could still be read
                size = connection.recv_into(self._buffer, LOOK, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                self._others.setdefault(address, deque()).append(connection)
                continue
            except OSError:
                size = 0
            if not size:
                connection.close()
                self._count -= 1
                continue
            is_whole = size == LOOK or self._encrypted or has_whole_request(memoryview(self._buffer)[:size])
            (self._whole if is_whole else self._others).setdefault(address, deque()).append(connection)

    def take(self) -> socket.socket | None:
        """Return the next connection, None if there is none that was looked at."""
        self._taken += 1
        first, second = (self._others, self._whole) if self._taken % PORTION == 0 else (self._whole, self._others)
        queues = first or second
        if not queues:
            return None
        address = next(iter(queues))
        queue = queues.pop(address)
        connection = queue.popleft()
        if queue:
            queues[address] = queue
        self._count -= 1
        return connection


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
