"""Connections that are accepted here and passed on, byte for byte, to a listening socket of this process.

A library that accepts connections itself takes none from others. It can listen on a Unix socket of an abstract name (Linux: unix(7)),
which leaves no file behind; a connection that is passed on to it has a name of its own, by which its client's address is found again.
"""

from __future__ import annotations

import asyncio
import math
import socket
from itertools import count, islice
from typing import cast

from relu_deploy.serving.transport.limits import SHARE_CLOSED

__all__ = ["Relay", "peer_name"]

#: seconds that a client may take to read what was sent to it before the other side ended the connection
LAST_SECONDS = 10.0


def peer_name(address: tuple[object, ...]) -> str:
    """Return gRPC's name of the peer with this address, such as ipv4:10.0.0.1:50000."""
    host, port = str(address[0]).removeprefix("::ffff:"), address[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


class Relay:
    """Passes connections on to one Unix socket. For the event loop's thread. `len` is how many there are."""

    def __init__(self, name: str) -> None:
        """name: the abstract name that the socket listens on, without the zero byte before it."""
        self._name = name
        self._numbers = count()
        #: by the name of each connection that is passed on, as gRPC writes it: the client's side, the oldest first
        self._clients: dict[str, _ClientSide] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of an accepted connection."""
        return _ClientSide(self)

    def client_of(self, peer: str) -> str:
        """Return gRPC's name of the client behind a peer; `peer` itself where it is no connection that was passed on."""
        found = self._clients.get(peer)
        return peer if found is None else found.client

    def close_oldest(self) -> int:
        """Close some of the connections, those that have been open longest, and return how many."""
        oldest = list(islice(self._clients.values(), math.ceil(len(self) * SHARE_CLOSED)))
        for each in oldest:
            each.abort()
        return len(oldest)

    def connect(self, client: _ClientSide) -> tuple[str, socket.socket]:
        """Return the name and the socket of a new connection that is passed on. Raises OSError if there cannot be another one."""
        onward = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            onward.setblocking(False)
            name = f"{self._name}/{next(self._numbers)}"
            onward.bind(f"\0{name}")
            onward.connect(f"\0{self._name}")
        except OSError:
            onward.close()
            raise
        peer = f"unix-abstract:{name}"
        self._clients[peer] = client
        return peer, onward

    def forget(self, peer: str) -> None:
        """The connection of this name has ended."""
        self._clients.pop(peer, None)


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection that is passed on: what it receives, the other one sends."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._other: _Side | None = None
        #: received before there is the other side
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.send(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._other is not None:
            self._other.end()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.set_reading(False)

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.set_reading(True)

    def join(self, other: _Side) -> None:
        """Pass on what is received to `other`, and what has been received."""
        self._other = other
        for data in self._early:
            other.send(data)
        self._early = []

    def set_reading(self, reads: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end(self) -> None:
        """End this side: the other one has ended."""
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(LAST_SECONDS, self.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _ClientSide(_Side):
    """The accepted connection.

    Attributes:
        client: gRPC's name of the client.
    """

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay
        self.client = self._peer = ""
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if (address := transport.get_extra_info("peername")) is None:  # the client has left
            self.abort()
            return
        self.client = peer_name(address)
        try:
            self._peer, onward = self._relay.connect(self)
        except OSError:
            self.abort()
            return
        self._joining = asyncio.get_running_loop().create_task(self._join(onward))

    async def _join(self, onward: socket.socket) -> None:
        try:
            _, other = await asyncio.get_running_loop().create_unix_connection(_Side, sock=onward)
        except OSError:
            onward.close()
            self.abort()
            return
        other.join(self)
        if self._transport is None:
            other.abort()
        else:
            self.join(other)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._relay.forget(self._peer)
