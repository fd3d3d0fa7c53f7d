"""Connections that are passed on: every byte arrives, in both directions, and the end of one side ends the other."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from relu_deploy.serving.transport.relay import Relay, peer_name

uvloop = pytest.importorskip("uvloop", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names of sockets: run it there")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def relayed(handle: Handler) -> AsyncIterator[tuple[Relay, int]]:
    """Yield a relay to a server with this handler, and the port of what it passes on."""
    name = f"relu-deploy-test-{secrets.token_hex(8)}"
    relay = Relay(name)
    onward = socket.socket(socket.AF_UNIX)
    onward.bind(f"\0{name}")
    server = await asyncio.start_unix_server(handle, sock=onward)
    front = await asyncio.get_running_loop().create_server(relay.protocol, "127.0.0.1", 0)
    try:
        yield relay, front.sockets[0].getsockname()[1]
    finally:
        front.close()
        server.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def in_loop(work: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(work(), 30))  # type: ignore[arg-type]

    return in_loop


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_every_byte_arrives_in_both_directions(run: Callable[..., None]) -> None:
    sent = secrets.token_bytes(5_000_000)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()

    async def work() -> None:
        async with relayed(echo) as (relay, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            # The client reads nothing until all is sent: more than the buffers on the way hold.
            await asyncio.sleep(0.3)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await until(lambda: len(relay) == 0)

    run(work)


def test_what_is_held_for_a_client_that_does_not_read_is_bounded(run: Callable[..., None]) -> None:
    written = []

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(written) < 1000:
            writer.write(bytes(2**16))
            await writer.drain()
            written.append(2**16)

    async def work() -> None:
        async with relayed(flood) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
            await asyncio.sleep(0.5)
            before = len(written)
            await asyncio.sleep(0.3)
            # 62 MiB, of which the buffers of the system hold some.
            assert len(written) == before < 1000
            writer.close()

    run(work)


def test_the_end_of_the_client_is_the_end_for_the_other_side(run: Callable[..., None]) -> None:
    ended = []

    async def read(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        ended.append(await reader.read())

    async def work() -> None:
        async with relayed(read) as (relay, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"the last words")
            writer.close()
            await until(lambda: bool(ended) and len(relay) == 0)
            assert ended == [b"the last words"]

    run(work)


def test_what_was_sent_before_the_end_of_the_other_side_arrives(run: Callable[..., None]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(bytes(3_000_000))
        writer.close()

    async def work() -> None:
        async with relayed(answer) as (relay, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            assert len(await reader.read(-1)) == 3_000_000
            await until(lambda: len(relay) == 0)
            writer.close()

    run(work)


def test_the_client_behind_a_peer_is_known_while_it_is_connected(run: Callable[..., None]) -> None:
    peers = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append("unix-abstract:" + writer.get_extra_info("socket").getpeername()[1:].decode())
        await reader.read()

    async def work() -> None:
        async with relayed(keep) as (relay, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: bool(peers))
            assert relay.client_of(peers[0]) == peer_name(writer.get_extra_info("sockname"))
            assert relay.client_of("ipv4:10.0.0.1:5") == "ipv4:10.0.0.1:5"
            writer.close()
            await until(lambda: relay.client_of(peers[0]) == peers[0])

    run(work)


def test_the_oldest_are_closed_first(run: Callable[..., None]) -> None:
    async def keep(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work() -> None:
        async with relayed(keep) as (relay, port):
            clients = []
            for at in range(9):
                clients.append(await asyncio.open_connection("127.0.0.1", port))
                await until(lambda at=at: len(relay) == at + 1)  # type: ignore[misc]
            # An eighth, rounded up.
            assert relay.close_oldest() == 2
            for reader, _ in clients[:2]:
                assert await reader.read() == b""
            await until(lambda: len(relay) == 7)
            for _, writer in clients:
                writer.close()

    run(work)


def test_a_client_is_closed_where_nobody_takes_the_connection(run: Callable[..., None]) -> None:
    async def work() -> None:
        relay = Relay(f"relu-deploy-test-{secrets.token_hex(8)}")
        front = await asyncio.get_running_loop().create_server(relay.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b""
            raise ConnectionResetError
        assert len(relay) == 0
        writer.close()
        front.close()

    run(work)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("10.0.0.1", 50000), "ipv4:10.0.0.1:50000"),
        (("::ffff:10.0.0.1", 50000, 0, 0), "ipv4:10.0.0.1:50000"),
        (("::1", 50000, 0, 0), "ipv6:[::1]:50000"),
    ],
)
def test_peers_have_the_names_that_grpc_gives_them(address: tuple[object, ...], name: str) -> None:
    assert peer_name(address) == name
