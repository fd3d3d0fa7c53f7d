"""Accepting: whoever is there gets a protocol, whoever has left costs next to nothing, and a full process tries again."""

import asyncio
import errno
import os
import socket
import ssl
import struct
from typing import ClassVar

import pytest

from relu_deploy.serving.transport import accepting
from relu_deploy.serving.transport.accepting import Acceptor, Turn
from relu_deploy.serving.transport.sockets import listening

uvloop = pytest.importorskip("uvloop", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
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
        acceptor = Acceptor([bound], Echo, None)
        with connected(bound, b"hello") as good:
            assert await echoed(good) == b"hello"
        acceptor.close()
        await acceptor.wait_closed()

    asyncio.run(run())
    assert len(Echo.made) == 1


class Full:
    """A listening socket whose next accepts fail with these numbers."""

    def __init__(self, bound, *numbers):
        self._bound, self.numbers = bound, list(numbers)

    def __getattr__(self, name):
        return getattr(self._bound, name)

    def fileno(self):
        return self._bound.fileno()

    def accept(self):
        if self.numbers:
            number = self.numbers.pop()
            raise OSError(number, os.strerror(number))
        return self._bound.accept()


def test_many_connections_are_accepted_in_one_turn_and_a_few_of_them_get_a_protocol_in_each(bound):
    async def run():
        clients = [connected(bound_and_listening(bound), b"%d" % at) for at in range(20)]
        acceptor = Acceptor([bound], Echo, None, turn=Turn(seconds=60.0))
        while not acceptor._opening:
            await asyncio.sleep(0)
        assert len(acceptor._opening) == Turn().opened
        assert len(acceptor._opening) + len(acceptor._arrivals) == len(clients)
        assert [await echoed(one) for one in clients] == [b"%d" % at for at in range(20)]
        acceptor.close()
        for one in clients:
            one.close()

    asyncio.run(run())


def bound_and_listening(bound):
    bound.listen(200)
    return bound


def test_a_process_without_file_descriptors_left_says_so_and_accepts_when_it_has_some_again(bound, monkeypatch, caplog):
    async def run():
        acceptor = Acceptor([Full(bound, errno.EMFILE, errno.ENFILE)], Echo, None)
        with connected(bound, b"hello") as one:
            assert await echoed(one) == b"hello"
        acceptor.close()

    asyncio.run(run())
    assert caplog.text.count("cannot accept connections for now") == 2


def test_idle_connections_make_room_for_new_ones_at_once(bound, monkeypatch):
    monkeypatch.setattr(accepting, "RETRY_SECONDS", 60.0)
    closed = []

    async def run():
        acceptor = Acceptor([Full(bound, errno.EMFILE)], Echo, None, lambda: closed.append(1) or 1)
        with connected(bound, b"hello") as one:
            assert await echoed(one) == b"hello"
        acceptor.close()

    asyncio.run(run())
    assert closed == [1]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_the_oldest_tls_handshakes_are_given_up_when_no_file_descriptor_is_left(bound, monkeypatch, new_loop):
    monkeypatch.setattr(accepting, "RETRY_SECONDS", 60.0)
    bound.listen(20)
    full = Full(bound)

    async def run():
        clients = [connected(bound) for _ in range(8)]
        acceptor = Acceptor([full], Echo, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        while len(acceptor._opening) < 8:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        full.numbers.append(errno.EMFILE)
        clients.append(connected(bound))
        assert await echoed(clients[0]) == b""  # the server has closed it
        while len(acceptor._opening) < 8:
            await asyncio.sleep(0.01)
        for one in clients[1:]:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
        monkeypatch.setattr(accepting, "LAST_SECONDS", 0.1)
        acceptor.close()
        await acceptor.wait_closed()
        clients[-1].settimeout(5)
        assert await echoed(clients[-1]) == b""  # handshakes without end do not keep the server from its end
        for one in clients:
            one.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def test_after_its_end_nothing_is_accepted(bound):
    async def run():
        acceptor = Acceptor([bound], Echo, None)
        acceptor.close()
        with connected(bound, b"hello") as one, pytest.raises(TimeoutError):
            one.settimeout(0.2)
            await asyncio.to_thread(one.recv, 100)

    asyncio.run(run())
    assert not Echo.made
