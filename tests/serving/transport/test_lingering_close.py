"""A client whose request is refused while it still sends gets the refusal, not a reset; one that never stops is cut off."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from functools import partial

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip("python_multipart", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

import uvicorn
import uvloop
from running import Running, until
from uvicorn.server import ServerState

from relu_deploy.serving.transport.connection import Connection, ConnectionSettings
from relu_deploy.serving.transport.limits import HttpLimits, LingerLimits

MIB = 2**20


@pytest.fixture(scope="module")
def server(digits_bundle):
    with Running(digits_bundle.path, "--threads", "1", "--max-body", "1") as running:
        yield running


def answer_to(port, head, body, pause=0.0, piece=2**16):
    """Return the status, the JSON and what came after them, for a client that reads nothing before it has sent everything."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(head)
        for start in range(0, len(body), piece):
            time.sleep(pause)
            one.sendall(body[start : start + piece])
        # Whatever resets the connection does so by now.
        time.sleep(0.3)
        received = b""
        while part := one.recv(2**16):
            received += part
    top, _, rest = received.partition(b"\r\n\r\n")
    assert b"connection: close" in top.lower()
    length = int(top.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return int(top[9:12]), json.loads(rest[:length]), rest[length:]


def head(path, size, *more):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {size}", *more, "", ""]).encode()


@pytest.mark.parametrize("pause", [0.0, 0.03], ids=["fast", "slow"])
def test_a_body_that_is_too_large_gets_its_413_though_all_of_it_is_sent_first(server, pause):
    body = bytes(3 * MIB)
    for path in ("/v2/models/digits/infer", "/v2/models/digits/predict", "/v2/models/digits/relus"):
        status, reply, after = answer_to(server.port, head(path, len(body)), body, pause)
        assert (status, after) == (413, b"")
        assert reply["error"].startswith("a body of 3145728 bytes exceeds the limit of 1048576; ")
        pause = 0


def test_a_body_in_chunks_that_becomes_too_large_gets_its_413(server):
    top = head("/v2/models/digits/infer", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = (b"%x\r\n%b\r\n" % (2**16, bytes(2**16))) * 48 + b"0\r\n\r\n"
    status, reply, _ = answer_to(server.port, top, body)
    assert status == 413
    assert "the body exceeds the limit of 1048576 bytes" in reply["error"]


@pytest.mark.parametrize(
    ("path", "more", "status", "words"),
    [
        ("/v2/models/nobody/infer", (), 404, "no model called 'nobody'"),
        ("/nowhere", (), 404, "nothing at POST /nowhere"),
        ("/v2/models/digits/predict?top=x", (), 400, "top is 'x'"),
        ("/v2/models/digits/infer", ("Content-Encoding: br",), 400, "'br' is not supported"),
    ],
)
def test_what_is_refused_before_its_body_is_read_gets_its_answer(server, path, more, status, words):
    body = bytes(MIB)
    got, reply, _ = answer_to(server.port, head(path, len(body), *more), body)
    assert got == status
    assert words in reply["error"]


def test_headers_that_are_too_long_get_their_431(server):
    got, reply, _ = answer_to(server.port, b"GET /v2 HTTP/1.1\r\na: ", b"x" * MIB)
    assert (got, reply) == (431, {"error": "the headers are too long"})


def test_what_is_not_http_gets_its_400_though_more_is_sent(server):
    top = head("/v2/models/digits/infer", "many")
    got, reply, _ = answer_to(server.port, top, bytes(MIB))
    assert (got, reply) == (400, {"error": "this is not an HTTP request"})


def test_a_client_that_waits_for_its_100_sends_nothing(server):
    received = server.raw(head("/v2/models/digits/infer", 3 * MIB, "Expect: 100-continue"))
    assert received.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in received


def test_a_server_that_stops_does_not_wait_for_who_still_sends(digits_bundle):
    with (
        Running(digits_bundle.path, "--threads", "1", "--max-body", "1") as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as one,
    ):
        one.sendall(head("/v2/models/digits/infer", 100 * MIB))
        assert one.recv(2**16).startswith(b"HTTP/1.1 413")
        started = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - started < 4


# ---------------------------------------------------------------- the bounds, on a server of its own


async def refusing(scope, receive, send):  # it reads nothing
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"no"})


@contextlib.contextmanager
def lingering(limits, loop_factory):
    """Yield the port of a server that refuses everything, and the set of its connections."""
    config = uvicorn.Config(refusing, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state, ready, ended = ServerState(), threading.Event(), threading.Event()
    found = {}

    async def run():
        given = {"config": config, "server_state": state, "app_state": {}}
        make = partial(Connection, ConnectionSettings(HttpLimits(linger=limits)), **given)
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        found["port"] = server.sockets[0].getsockname()[1]
        ready.set()
        await asyncio.to_thread(ended.wait)
        server.close()

    def work():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    try:
        yield found["port"], state.connections
    finally:
        ended.set()
        thread.join()


def refused(one):
    """Return the answer of `refusing`, which is all that comes."""
    received = b""
    while part := one.recv(2**16):
        received += part
    return received


def sent_until_cut_off(port, pause):
    """Return the answer of a client that never stops, how many bytes it could send, and for how many seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(head("/", 2**40))
        received, sent, started = refused(one), 0, time.monotonic()
        while time.monotonic() - started < 20:
            try:
                sent += one.send(bytes(2**16))
            except OSError:
                return received, sent, time.monotonic() - started
            time.sleep(pause)
    raise AssertionError("it was not cut off")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request):
    return request.param


def test_who_never_stops_is_cut_off_after_so_many_bytes(loop_factory):
    with lingering(LingerLimits(seconds=60, silence=60, size=8 * MIB), loop_factory) as (port, connections):
        received, sent, seconds = sent_until_cut_off(port, 0)
        assert received.startswith(b"HTTP/1.1 413")
        # Some is still under way when it is cut off.
        assert 8 * MIB <= sent < 32 * MIB
        assert seconds < 15
        until(lambda: not connections)


def test_who_never_stops_is_cut_off_after_so_many_seconds(loop_factory):
    with lingering(LingerLimits(seconds=1, silence=0.5), loop_factory) as (port, connections):
        _, _, seconds = sent_until_cut_off(port, 0.02)
        assert 0.8 < seconds < 10
        until(lambda: not connections)


def test_who_falls_silent_is_cut_off(loop_factory):
    with (
        lingering(LingerLimits(seconds=60, silence=0.3), loop_factory) as (port, connections),
        socket.create_connection(("127.0.0.1", port), timeout=20) as one,
    ):
        one.sendall(head("/", 1000))
        assert refused(one).endswith(b"no")
        started = time.monotonic()
        until(lambda: not connections, 15)
        assert time.monotonic() - started < 10


def test_a_client_that_closes_ends_it_at_once(loop_factory):
    with lingering(LingerLimits(seconds=60, silence=60), loop_factory) as (port, connections):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            one.sendall(head("/", 1000))
            assert refused(one).endswith(b"no")
            assert connections
        until(lambda: not connections, 10)


def test_a_request_whose_body_is_all_there_ends_without_lingering(loop_factory):
    with (
        lingering(LingerLimits(seconds=60, silence=60), loop_factory) as (port, connections),
        socket.create_connection(("127.0.0.1", port), timeout=20) as one,
    ):
        one.sendall(head("/", 4) + b"1234")
        assert refused(one).endswith(b"no")
        until(lambda: not connections, 10)
