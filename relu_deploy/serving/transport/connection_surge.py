"""Accepting connections in a library's place while more arrive than it can take.

gRPC sets up each connection that it accepts, and begins each call that a connection brings, also when the client has long left. One
client that connects and leaves thousands of times a second keeps it busy: its accept queue fills, the system drops what comes next,
and every other client waits for seconds until its system tries again. While that lasts, connections are accepted here (`Acceptor`):
those whose clients have left are closed, which costs little, and the others are passed on, as many as the event loop can take.
Passing on costs up to a tenth of the calls a second, and half of those with messages of 600 KB, so it ends when fewer arrive. Only for
Linux.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from relu_deploy.serving.transport.accepting import Acceptor, Turn
from relu_deploy.serving.transport.arrivals import Arrivals
from relu_deploy.serving.transport.relay import Relay
from relu_deploy.serving.transport.shared_port import SharedPort

__all__ = ["ConnectionSurge"]

#: grpc.aio takes one call in a turn of the event loop, and those that it has not taken wait
TURN = Turn(seconds=0.00005, opened=1)
#: seconds until an accepted connection is looked at
SETTLE_SECONDS = 0.005
#: seconds between two looks at the accept queue
INTERVAL = 0.05
#: queues of connections that wait to be accepted here: what comes while they are full waits for seconds
QUEUES = 3
#: connections in gRPC's accept queue, and those whose clients left before a call's message was there in one interval, that begin a surge
MOST_WAITING, MOST_ABANDONED = 16, 10
#: seconds in which gRPC's calls have the event loop for themselves when a surge begins: it has taken hundreds by then, before others'
HEAD_START_SECONDS = 0.1
#: a surge is over when in so many seconds no more than so many connections were accepted
CALM_SECONDS, CALM_CONNECTIONS = 1.0, 50

log = logging.getLogger("relu_deploy.serve")


class ConnectionSurge:
    """Accepts the connections to a port of gRPC while too many arrive.

    Attributes:
        active: Whether connections are accepted here.
    """

    def __init__(self, port: int, relay: Relay) -> None:
        """Listen beside gRPC, in the running loop, without getting connections yet.

        Args:
            port: Where gRPC listens with SO_REUSEPORT.
            relay: Passes connections on to gRPC.

        Raises:
            OSError: If the system cannot choose which socket gets connections.
        """
        self._loop = asyncio.get_running_loop()
        self._port = SharedPort(port, QUEUES)
        arrivals = Arrivals(bool, half_closed=False, settle_seconds=SETTLE_SECONDS)
        self._acceptor = Acceptor(self._port.sockets, relay.protocol, None, relay.close_oldest, arrivals, TURN)
        self.active = False
        #: peers, since the last check
        self._abandoned: set[str] = set()
        self._calm_at, self._accepted = 0.0, 0
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            self.check()

    def count_abandoned(self, peer: str) -> None:
        """A call of this peer has ended because its client left before its message was there."""
        self._abandoned.add(peer)
        if len(self._abandoned) > MOST_ABANDONED:
            self._begin()

    def check(self) -> None:
        """Begin or end a surge if it is time."""
        self._abandoned.clear()
        if not self.active:
            if self._port.waiting() > MOST_WAITING:
                self._begin()
        elif self._loop.time() >= self._calm_at:
            if self._acceptor.accepted - self._accepted <= CALM_CONNECTIONS:
                self._choose(ours=False)
            self._count_until_calm()

    def close(self) -> None:
        """Accept no more connections. Those that were passed on stay open."""
        self._watching.cancel()
        if self.active:
            self._choose(ours=False)
        self._acceptor.close()
        self._port.close()

    def _begin(self) -> None:
        if not self.active:
            log.warning("more gRPC connections arrive than gRPC accepts: those whose clients leave at once are closed")
            self._choose(ours=True)
            self._acceptor.pause(HEAD_START_SECONDS)
            self._count_until_calm()

    def _count_until_calm(self) -> None:
        self._calm_at, self._accepted = self._loop.time() + CALM_SECONDS, self._acceptor.accepted

    def _choose(self, ours: bool) -> None:
        with suppress(OSError):
            self._port.choose(ours)
            self.active = ours
