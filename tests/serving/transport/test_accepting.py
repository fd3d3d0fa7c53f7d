"""Accepting: whoever is there gets a protocol, whoever has left costs next to nothing, and a full process tries again."""

import asyncio
import errno
import os
import socket
import struct
from typing import ClassVar

import pytest

from relu_deploy.serving.transport import accepting
from relu_deploy.serving.transport.accepting import Acceptor
from relu_deploy.serving.transport.sockets import listening

RESET = struct.pack("ii", 1, 0)


class Echo(asyncio.Protocol):
    """Sends back what it receives, and counts the connections."""

    made: ClassVar[list["Echo"]] = []

    def connection_made(self, transport):
        self.made.append(self)
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


@pytest.fixture
def bound(monkeypatch):
    monkeypatch.setattr(Echo, "made", [])
    with listening("127.0.0.1", 0, "--http-port") as one:
        yield one


def connected(bound, sent=b""):
    one = socket.create_connection(bound.getsockname(), timeout=5)
    one.sendall(sent)
    return one


async def echoed(connection):
    return await asyncio.wait_for(asyncio.to_thread(connection.recv, 100), 5)


def test_connections_that_were_reset_before_they_were_accepted_get_no_protocol_and_do_not_hold_up_the_next(bound):
    async def run():
        bound.listen(200)
        for _ in range(100):
            with connected(bound, b"a request") as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        acceptor = Acceptor(bound, Echo, None)
        with connected(bound, b"hello") as good:
            assert await echoed(good) == b"hello"
        acceptor.close()
        await acceptor.wait_closed()

    asyncio.run(run())
    assert len(Echo.made) == 1


def test_many_connections_are_accepted_in_one_turn(bound, monkeypatch):
    monkeypatch.setattr(accepting, "TURN_SECONDS", 60.0)

    async def run():
        clients = [connected(bound_and_listening(bound), b"%d" % at) for at in range(20)]
        turns = 0
        acceptor = Acceptor(bound, Echo, None)
        while not acceptor._opening and not Echo.made:
            await asyncio.sleep(0)
            turns += 1
        assert len(acceptor._opening) + len(Echo.made) >= 20
        assert [await echoed(one) for one in clients] == [b"%d" % at for at in range(20)]
        acceptor.close()
        for one in clients:
            one.close()

    asyncio.run(run())


def bound_and_listening(bound):
    bound.listen(200)
    return bound


def test_a_process_without_file_descriptors_left_says_so_and_accepts_when_it_has_some_again(bound, monkeypatch, caplog):
    refusals = [errno.EMFILE, errno.ENFILE]

    class Full:
        """A socket whose first accepts fail."""

        def __getattr__(self, name):
            return getattr(bound, name)

        def fileno(self):
            return bound.fileno()

        def accept(self):
            if refusals:
                number = refusals.pop()
                raise OSError(number, os.strerror(number))
            return bound.accept()

    async def run():
        acceptor = Acceptor(Full(), Echo, None)
        with connected(bound, b"hello") as one:
            assert await echoed(one) == b"hello"
        acceptor.close()

    asyncio.run(run())
    assert caplog.text.count("cannot accept connections for now") == 2


def test_after_its_end_nothing_is_accepted(bound):
    async def run():
        acceptor = Acceptor(bound, Echo, None)
        acceptor.close()
        with connected(bound, b"hello") as one, pytest.raises(TimeoutError):
            one.settimeout(0.2)
            await asyncio.to_thread(one.recv, 100)

    asyncio.run(run())
    assert not Echo.made
