"""Early refusals of a full server: answered at once, the body skipped, and the connection paused for a while."""

import asyncio
import contextlib
import json
import time
from functools import partial

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

import uvicorn
from uvicorn.server import ServerState

from relu_deploy.serving.errors import NotFound, Unavailable
from relu_deploy.serving.protocol.routes import RequestContext, parse_route
from relu_deploy.serving.transport.admission import AdmissionControl, AdmissionLimits, Refusal
from relu_deploy.serving.transport.connection import MAX_SKIPPED, Connection, ConnectionSettings
from relu_deploy.serving.transport.limits import HttpLimits
from relu_deploy.serving.transport.paused_connections import PausedConnections

PAUSE = 0.2


def request(name, body=b"12345678", headers=()):
    lines = [f"POST /v2/models/{name}/infer HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def app(scope, receive, send):
    """Answer with the path and how long the body was."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    answer = f"{scope['path']} {length}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(answer)).encode())]})
    await send({"type": "http.response.body", "body": answer})


class Full:
    """Refuses all requests for the model called `full`. free: slots of its queue after a refusal."""

    def __init__(self, free=0):
        self.contexts, self.free = [], free

    def __call__(self, context):
        self.contexts.append(context)
        if context.route.model != "full":
            return None
        return Refusal(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", lambda: self.free)


async def answered(reader):
    """Return the status and the body of the next answer, and when it came."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
    return int(head[9:12]), await reader.readexactly(length), time.perf_counter()


@contextlib.asynccontextmanager
async def connected(admit_early, protocol=Connection, seconds=PAUSE, **limits):
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    given = {"config": config, "server_state": state, "app_state": {}}
    shared = ConnectionSettings(HttpLimits(**limits), admit_early, PausedConnections(seconds))
    server = await asyncio.get_running_loop().create_server(partial(protocol, shared, **given), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


def test_a_refused_connection_is_answered_at_once_and_then_not_read_for_a_while():
    async def run():
        async with connected(Full()) as (reader, writer):
            writer.write(request("full"))
            assert (await answered(reader))[:2] == (503, b"busy")
            sent = time.perf_counter()
            writer.write(request("free"))
            status, body, came = await answered(reader)
            assert (status, body) == (200, b"/v2/models/free/infer 8")
            assert came - sent > 0.8 * PAUSE
            # The pause was for the refusal: who was answered is read at once.
            sent = time.perf_counter()
            writer.write(request("free"))
            assert (await answered(reader))[2] - sent < PAUSE

    asyncio.run(run())


def test_a_refused_connection_is_read_as_soon_as_there_is_room():
    async def run():
        async with connected(Full(free=5)) as (reader, writer):
            started = time.perf_counter()
            for _ in range(3):
                writer.write(request("full") + request("free"))
                assert [(await answered(reader))[0] for _ in range(2)] == [503, 200]
            assert time.perf_counter() - started < 3 * PAUSE

    asyncio.run(run())


def test_a_server_that_goes_down_reads_what_refused_connections_have_sent_meanwhile():
    async def run():
        protocols = []

        class Watched(Connection):
            def connection_made(self, transport):
                protocols.append(self)
                super().connection_made(transport)

        async with connected(Full(), protocol=Watched, seconds=60) as (reader, writer):
            writer.write(request("full"))
            assert (await answered(reader))[0] == 503
            writer.write(request("free"))
            await asyncio.sleep(0.05)
            protocols[0].shutdown()
            assert (await answered(reader))[0] == 200

    asyncio.run(run())


def test_paused_connections_resume_in_order_as_many_as_there_is_room_for_and_all_in_the_end():
    async def run():
        gone, rooms = [], {"a": [0, 2, 0], "b": [0, 0, 1]}
        paused = PausedConnections(0.5, interval=0.02)
        loop = asyncio.get_running_loop()
        started = loop.time()

        def taking(name):
            return lambda: rooms[name].pop(0) if rooms[name] else 0

        room = {name: taking(name) for name in rooms}
        for name in ("a1", "b1", "a2", "a3", "b2", "a4"):
            paused.hold(lambda name=name: gone.append((name, loop.time() - started)), room[name[0]])
        await asyncio.sleep(0.8)
        return gone

    gone = asyncio.run(run())
    assert [name for name, _ in gone] == ["a1", "a2", "b1", "a3", "a4", "b2"]
    assert all(seconds < 0.48 for _, seconds in gone[:3])
    assert all(seconds >= 0.5 for _, seconds in gone[3:])


@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_leaves_once_it_was_refused_makes_no_error(half):
    async def run():
        found = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
        async with connected(Full()) as (reader, writer):
            writer.write(request("full"))
            assert (await answered(reader))[0] == 503
            if half:
                writer.write_eof()
                assert await asyncio.wait_for(reader.read(), 10) == b""
        await asyncio.sleep(2 * PAUSE)
        return found

    assert asyncio.run(run()) == []


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_body_of_a_refused_request_is_skipped_however_late_it_comes(pieces):
    async def run():
        async with connected(Full()) as (reader, writer):
            body = bytes(range(32, 127)) * 30
            whole = request("full", body)
            head = len(whole) - len(body)
            writer.write(whole[:head])
            assert (await answered(reader))[0] == 503
            for start in range(head, len(whole), -(-len(body) // pieces)):
                writer.write(whole[start : start + -(-len(body) // pieces)])
                await asyncio.sleep(0.05)
            writer.write(request("free", b"xyz"))
            assert (await answered(reader))[:2] == (200, b"/v2/models/free/infer 3")

    asyncio.run(run())


def test_the_time_for_headers_does_not_run_on_behind_a_refusal():
    async def run():
        async with connected(Full(), header_seconds=0.4) as (reader, writer):
            whole = request("full")
            writer.write(whole[:-4])
            assert (await answered(reader))[0] == 503
            writer.write(whole[-4:])
            await asyncio.sleep(0.8)
            writer.write(request("free"))
            assert (await answered(reader))[0] == 200

    asyncio.run(run())


def test_requests_that_were_sent_ahead_are_answered_in_order():
    async def run():
        async with connected(Full()) as (reader, writer):
            writer.write(request("full") + request("free") + request("full") + request("free", b""))
            found = [(await answered(reader))[:2] for _ in range(4)]
            assert [status for status, _ in found] in ([503, 200, 503, 200], [503, 200, 200, 200])
            assert found[1][1] == b"/v2/models/free/infer 8"
            assert found[3][1] == b"/v2/models/free/infer 0"

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        request("full", bytes(MAX_SKIPPED + 1)),
        request("full", headers=["Expect: 100-continue"]),
        request("full", headers=["Connection: close"]),
        request("full").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("full").replace(b"Content-Length: 8", b"Transfer-Encoding: chunked").replace(b"12345678", b"0\r\n\r\n"),
    ],
    ids=["long", "expect", "close", "http-1.0", "chunked"],
)
def test_what_cannot_be_skipped_goes_the_usual_way(sent):
    async def run():
        full = Full()
        async with connected(full) as (reader, writer):
            writer.write(sent)
            status, body, _ = await answered(reader)
            if status == 100:
                status, body, _ = await answered(reader)
            assert (status, body.split()[0]) == (200, b"/v2/models/full/infer")
        assert full.contexts == []

    asyncio.run(run())


class Models:
    """A model that has room for three, one that has none, and one that is not loaded."""

    reserved = 0

    def get(self, name, version=""):
        if name not in ("free", "full", "gone") or version not in ("", "1"):
            raise NotFound("there is none")
        if name == "gone":
            raise Unavailable("it is not loaded")
        self.name = name
        return self

    def free_slots(self):
        return 17

    def reserve(self):
        if self.name == "full" or self.reserved >= 3:
            raise Unavailable("the queue is full: 7 requests wait", "try again later", retry_after=1.2)
        self.reserved += 1
        return self

    def release(self):
        self.reserved -= 1


class Observed(list):
    def on_complete(self, context, status, seconds):
        self.append((context, status, seconds))


def context_of(path, method="POST", headers=()):
    return RequestContext(method, path, "10.0.0.1", headers, parse_route(method, path))


def test_a_full_queue_refuses_its_requests_early_and_no_others():
    observed = Observed()
    admission = AdmissionControl(Models(), observed)
    for path in ("/v2/models/full/infer", "/v2/models/full/predict", "/v2/models/full/versions/1/infer"):
        refusal = admission.admit_early(context_of(path, headers=[(b"a", b"b")]))
        assert refusal.free_slots() == 17
        head, _, body = refusal.response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 2" in head
        assert f"\r\ncontent-length: {len(body)}\r\n".encode() in head
        assert json.loads(body) == {"error": "the queue is full: 7 requests wait; try again later"}
    assert [(context.path, context.model, status) for context, status, _ in observed] == [
        ("/v2/models/full/infer", "full", 503),
        ("/v2/models/full/predict", "full", 503),
        ("/v2/models/full/versions/1/infer", "full", 503),
    ]
    assert all(context.headers == [(b"a", b"b")] for context, *_ in observed)
    for method, path in (
        ("GET", "/v2/models/full/infer"),
        ("POST", "/v2/models/full"),
        ("POST", "/v2/models/full/versions/7/infer"),
        ("POST", "/v2/models/free/infer"),
        ("POST", "/v2/models/none/infer"),
        ("POST", "/v2/models/gone/infer"),
        ("POST", "/v2/repository/models/full/load"),
    ):
        assert admission.admit_early(context_of(path, method)) is None
    assert len(observed) == 3


def test_an_admitted_request_counts_until_it_ends_and_is_decided_on_once():
    models = Models()
    admission = AdmissionControl(models, Observed())
    contexts = [context_of("/v2/models/free/infer") for _ in range(5)]
    assert [admission.admit_early(context) is None for context in contexts] == [True, True, True, False, False]
    admission.admit(contexts[0])
    assert models.reserved == 3
    contexts[0].release_slot()
    contexts[0].release_slot()
    assert models.reserved == 2
    admission.admit(context_of("/v2/models/free/infer"))
    with pytest.raises(Unavailable):
        admission.admit(contexts[4])


def test_a_request_whose_body_is_on_its_way_holds_no_place():
    models = Models()
    admission = AdmissionControl(models, Observed())
    slow, whole = context_of("/v2/models/free/infer"), context_of("/v2/models/free/infer")
    admission.admit_early(slow)
    admission.admit_early(whole)
    whole.body_complete = True
    slow.release_unless_complete()
    whole.release_unless_complete()
    assert (slow.slot, whole.slot is None, models.reserved) == (None, False, 1)


def test_one_client_has_no_more_requests_in_progress_than_its_limit():
    admission = AdmissionControl(Models(), Observed(), limits=AdmissionLimits(per_client=2))
    first, second, third = (context_of("/v2/models/free/infer") for _ in range(3))
    other = RequestContext("POST", "/v2/models/free/infer", "10.0.0.2", route=parse_route("POST", "/v2/models/free/infer"))
    admission.admit(first)
    admission.admit(second)
    with pytest.raises(Unavailable, match="this client has 2 requests"):
        admission.admit(third)
    admission.admit(other)
    # In the queue the request still counts; once it has ended, it does not.
    first.release_slot()
    with pytest.raises(Unavailable):
        admission.admit(third)
    admission.end(first)
    admission.end(first)
    admission.admit(third)
    for context in (second, third, other):
        admission.end(context)
    assert (Models.reserved, admission._clients) == (0, {})


def test_all_requests_together_hold_no_more_memory_than_the_limit():
    admission = AdmissionControl(Models(), Observed(), limits=AdmissionLimits(memory=100))
    first, second = context_of("/v2/models/free/infer"), context_of("/v2/models/free/infer")
    admission.hold_memory(first, 40)
    admission.hold_memory(first, 20)
    with pytest.raises(Unavailable, match="memory") as refused:
        admission.hold_memory(second, 41)
    assert refused.value.retry_after
    admission.hold_memory(second, 40)
    admission.end(first)
    admission.hold_memory(second, 60)
    admission.end(second)
    assert (first.memory, second.memory, admission._memory) == (0, 0, 0)
