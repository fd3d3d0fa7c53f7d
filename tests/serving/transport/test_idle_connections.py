"""Idle connections are closed before there is no room for new ones."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relu_deploy.serving.loading import ModelOptions
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.grpc_health import HealthService
from relu_deploy.serving.protocol.proto import messages
from relu_deploy.serving.transport.idle_connections import IdleConnections
from relu_deploy.serving.transport.relay import peer_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how long a connection has been silent")

#: more bytes than a client sends before its first call, and seconds after which it counts as silent
CALL, SILENCE = b"x" * 400, 0.3
#: what a client of HTTP/2 sends first, with empty settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Listener:
    """A port of this process and the connections to it: the clients' ends and the accepted ones."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bound = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self._bound.getsockname()[1]

    def connect(self) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
        self._stack.enter_context(self._bound.accept()[0])
        return client


@pytest.fixture
def listener() -> Iterator[Listener]:
    with ExitStack() as stack:
        yield Listener(stack)


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_clients_that_never_called_are_closed_before_those_that_did(listener: Listener) -> None:
    called = [listener.connect() for _ in range(3)]
    for client in called:
        client.sendall(CALL)
    silent = [listener.connect() for _ in range(5)]
    time.sleep(SILENCE)
    # Six of twelve may stay.
    assert IdleConnections(listener.port, 12, lambda _: False).close_excess() == 2
    assert all(is_open(client) for client in called)
    assert sum(is_open(client) for client in silent) == 3


def test_the_client_that_has_been_silent_longest_is_closed_first(listener: Listener) -> None:
    clients = [listener.connect() for _ in range(4)]
    for client in clients:
        client.sendall(CALL)
        time.sleep(SILENCE)
    assert IdleConnections(listener.port, 6, lambda _: False).close_excess() == 1
    assert [is_open(client) for client in clients] == [False, True, True, True]


def test_connections_that_are_new_or_wait_for_an_answer_stay_open(listener: Listener) -> None:
    waiting = [listener.connect() for _ in range(4)]
    names = {peer_name(client.getsockname()) for client in waiting}
    time.sleep(SILENCE)
    new = [listener.connect() for _ in range(4)]
    assert IdleConnections(listener.port, 1, names.__contains__).close_excess() == 0
    assert all(is_open(client) for client in (*waiting, *new))


def test_a_search_leaves_no_file_descriptor_open(listener: Listener, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context((tmp_path / "file").open("w"))
        for end in (*socket.socketpair(), *map(os.fdopen, os.pipe())):
            stack.enter_context(end)
        listener.connect()
        before = len(list(Path("/proc/self/fd").iterdir()))
        IdleConnections(listener.port, 1, lambda _: False).close_excess()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_connections_to_other_ports_are_left_alone(listener: Listener) -> None:
    with ExitStack() as stack:
        other = Listener(stack)
        clients = [other.connect() for _ in range(6)]
        ours = [listener.connect() for _ in range(3)]
        time.sleep(SILENCE)
        assert IdleConnections(listener.port, 1, lambda _: False).close_excess() == 3
        assert all(is_open(client) for client in clients)
        assert not any(is_open(client) for client in ours)


@pytest.mark.parametrize("sent", [b"", PREFACE], ids=["nothing", "settings"])
def test_clients_that_hold_all_grpc_connections_and_do_nothing_keep_no_other_out(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    grpc_protocol = pytest.importorskip("relu_deploy.serving.protocol.grpc", reason="grpcio is not installed")
    # More connections than that are refused.
    monkeypatch.setattr(grpc_protocol, "most_connections", lambda: 8)

    async def check_beside_idle_clients() -> int:
        import grpc.aio

        service = HealthService(Models(ModelOptions()), lambda: True)
        server = grpc_protocol.GrpcServer([service], "127.0.0.1", 0, 2**20)
        await server.start()
        try:
            idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(12)]
            for _, writer in idle:
                writer.write(sent)
            await asyncio.sleep(2 * SILENCE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                response = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
            for _, writer in idle:
                writer.close()
            return int(messages("health").HealthCheckResponse.FromString(response).status)
        finally:
            await server.drain(0)

    # Without a model it is NOT_SERVING; what counts is that there is an answer.
    assert asyncio.run(check_beside_idle_clients()) == 2
