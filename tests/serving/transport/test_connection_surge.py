"""While more connections arrive than gRPC accepts, they are accepted in its place and passed on, and its clients notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

uvloop = pytest.importorskip("uvloop", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")

from relu_deploy.serving.loading import ModelOptions  # noqa: E402
from relu_deploy.serving.models import Models  # noqa: E402
from relu_deploy.serving.protocol.grpc import GrpcServer  # noqa: E402
from relu_deploy.serving.protocol.grpc_health import HealthService  # noqa: E402
from relu_deploy.serving.transport import connection_surge  # noqa: E402
from relu_deploy.serving.transport.connection_surge import ConnectionSurge  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux chooses who accepts a connection: run it there")

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[GrpcServer]:
    server = GrpcServer([HealthService(Models(ModelOptions()), lambda: True)], "127.0.0.1", 0, 2**20)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


def surge_of(server: GrpcServer) -> ConnectionSurge:
    assert server._surge is not None
    return server._surge


def channel_to(server: GrpcServer) -> Any:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)])


def leave(port: int, count: int) -> None:
    """Connect and leave, again and again."""
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_a_surge_begins_with_a_full_queue_and_ends_when_it_is_calm_and_calls_are_answered_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_surge, "CALM_SECONDS", 0.2)
    waiting = [0]

    async def work() -> None:
        async with serving() as server, channel_to(server) as kept:
            surge = surge_of(server)
            monkeypatch.setattr(surge._port, "waiting", lambda: waiting[0])
            assert await kept.unary_unary(CHECK)(b"", timeout=20)
            assert not surge.active
            waiting[0] = connection_surge.MOST_WAITING + 1
            await until(lambda: surge.active)
            before = surge._acceptor.accepted
            async with channel_to(server) as new:
                assert await new.unary_unary(CHECK)(b"", timeout=20)
                watch = new.unary_stream(WATCH)(b"", timeout=20)
                assert await watch.read() is not grpc.aio.EOF
                assert surge._acceptor.accepted == before + 1
                waiting[0] = 0
                await until(lambda: not surge.active)
                # What was passed on goes on, beside what gRPC accepts again.
                assert await kept.unary_unary(CHECK)(b"", timeout=20)
                assert await new.unary_unary(CHECK)(b"", timeout=20)
                async with channel_to(server) as third:
                    assert await third.unary_unary(CHECK)(b"", timeout=20)
                assert surge._acceptor.accepted == before + 1
                watch.cancel()

    run(work)


def test_calls_whose_clients_have_left_begin_a_surge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_surge, "INTERVAL", 60.0)

    async def work() -> None:
        async with serving() as server:
            surge = surge_of(server)
            for each in range(1, connection_surge.MOST_ABANDONED + 2):
                assert not surge.active
                async with channel_to(server) as channel:
                    for _ in range(2):  # connections count, not calls
                        call = channel.stream_unary(CHECK)()
                        await until(lambda: has_begun(server))
                        call.cancel()
                        await until(lambda each=each: len(surge._abandoned) == each and not has_begun(server))  # type: ignore[misc]
            assert surge.active

    run(work)


def test_a_few_clients_that_have_left_begin_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_surge, "INTERVAL", 0.01)

    async def work() -> None:
        async with serving() as server:
            surge = surge_of(server)
            for at in range(5):
                for peer in range(connection_surge.MOST_ABANDONED):
                    surge.count_abandoned(f"ipv4:10.0.{at}.1:{peer}")
                await until(lambda: not surge._abandoned)
            assert not surge.active

    run(work)


def has_begun(server: GrpcServer) -> bool:
    return any(receiver._waiting for receiver in server._receivers)


def test_in_a_surge_clients_that_have_left_reach_grpc_no_more() -> None:
    async def work() -> None:
        async with serving() as server:
            surge = surge_of(server)
            surge._choose(ours=True)
            surge._calm_at = float("inf")
            await asyncio.to_thread(leave, server.port, 300)
            async with channel_to(server) as new:
                assert await new.unary_unary(CHECK)(b"", timeout=20)
            assert surge._acceptor.accepted == 301
            await until(lambda: len(server._relay) == 0 and len(surge._acceptor._arrivals) == 0)

    run(work)


def test_a_server_in_a_surge_stops_and_frees_its_port() -> None:
    async def work() -> None:
        async with serving() as server, channel_to(server) as channel:
            surge_of(server)._choose(ours=True)
            assert await channel.unary_unary(CHECK)(b"", timeout=20)
            port = server.port
        with socket.create_server(("127.0.0.1", port)):
            pass

    run(work)


def test_where_the_system_cannot_choose_grpc_accepts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(connection_surge, "SharedPort", refuse)

    async def work() -> None:
        async with serving() as server, channel_to(server) as channel:
            assert server._surge is None
            assert await channel.unary_unary(CHECK)(b"", timeout=20)

    run(work)
