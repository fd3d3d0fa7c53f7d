"""A connection that has ended is freed at once, without a garbage collection."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from shutil import which
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
uvloop = pytest.importorskip("uvloop", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from certificates import certificate  # noqa: E402
from running import until  # noqa: E402
from untrusting import connected  # noqa: E402

from relu_deploy.serving.transport.connection import Connection, ConnectionSettings  # noqa: E402
from relu_deploy.serving.transport.http_server import HttpServer  # noqa: E402
from relu_deploy.serving.transport.limits import HttpLimits, LingerLimits  # noqa: E402
from relu_deploy.serving.transport.sockets import listening  # noqa: E402
from relu_deploy.serving.transport.tls import TlsOptions  # noqa: E402

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n"
#: by name: what a client sends before it leaves, and whether it waits for something first
CLIENTS = {
    "nothing": (b"", False),
    "half of the headers": (GET[:20], False),
    "half of a body": (POST + b"[", False),
    "a request that is answered": (GET, True),
    "requests that are pipelined": (GET * 3 + POST, True),
    "a request that is malformed": (b"\x00\x01\r\n\r\n", True),
    "a body after its answer": (POST + bytes(100) + GET, False),
    "an upgrade": (GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", True),
    "headers without end": (GET[:-2] + b"a: b\r\n" * 20_000, True),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsOptions:
    if which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    return TlsOptions(*certificate(tmp_path_factory.mktemp("certificate")))


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def answer(_: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Read the body, and answer."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", CLIENTS)
def test_a_connection_that_has_ended_is_freed_at_once(
    name: str, encrypted: bool, resets: bool, without_collections: None, request: pytest.FixtureRequest
) -> None:
    sent, waits = CLIENTS[name]
    options = request.getfixturevalue("tls") if encrypted else None
    made: list[weakref.ref[Connection]] = []
    settings = ConnectionSettings(HttpLimits(linger=LingerLimits(silence=0.2)))

    def make(**more: Any) -> Connection:
        one = Connection(settings, **more)
        made.append(weakref.ref(one))
        return one

    def leave(port: int) -> None:
        with connected(port, encrypted) as one:
            one.sendall(sent)
            until(lambda: bool(made))
            if waits:
                assert one.recv(1000)
            if resets:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def work() -> None:
        with listening("127.0.0.1", 0, "--http-port") as bound:
            server = HttpServer(answer, partial(make), options, 1.0)
            serving = await server.serve_on(bound)
            await asyncio.to_thread(leave, bound.getsockname()[1])
            end = asyncio.get_running_loop().time() + 10
            while any(one() is not None for one in made) and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.02)
            kept = [type(each).__name__ for one in made if (found := one()) for each in gc.get_referrers(found)]
            server.should_exit = True
            await serving
        assert kept == []

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
