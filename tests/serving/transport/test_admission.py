"""What a full server does at the door: refuse at once, skip the body, and then leave the connection unread for a while."""

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
from relu_deploy.serving.transport.admission import AdmissionControl, Refusal
from relu_deploy.serving.transport.connection import SKIPPED, Connection, ConnectionLimits
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
    told = f"{scope['path']} {length}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(told)).encode())]})
    await send({"type": "http.response.body", "body": told})


class Full:
    """Turns away all that is asked of the model called `full`. room: that its queue has again behind a refusal."""

    def __init__(self, room=0):
        self.asked, self.room = [], room

    def __call__(self, method, target, client, headers):
        self.asked.append((method, target, client, headers))
        if b"/full/" not in target:
            return None
        return Refusal(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", lambda: self.room)


async def answered(reader):
    """Return the status and the body of the next answer, and when it came."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
    return int(head[9:12]), await reader.readexactly(length), time.perf_counter()


@contextlib.asynccontextmanager
async def connected(turn, protocol=Connection, seconds=PAUSE, **manners):
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    given = {"config": config, "server_state": state, "app_state": {}}
    shared = ConnectionLimits(turn=turn, hall=PausedConnections(seconds), **manners)
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
        async with connected(Full(room=5)) as (reader, writer):
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


def test_the_hall_lets_go_in_order_as_many_as_there_is_room_for_and_all_in_the_end():
    async def run():
        gone, rooms = [], {"a": [0, 2, 0], "b": [0, 0, 1]}
        hall = PausedConnections(0.5, every=0.02)
        loop = asyncio.get_running_loop()
        started = loop.time()

        def taking(name):
            return lambda: rooms[name].pop(0) if rooms[name] else 0

        room = {name: taking(name) for name in rooms}
        for name in ("a1", "b1", "a2", "a3", "b2", "a4"):
            hall.hold(lambda name=name: gone.append((name, loop.time() - started)), room[name[0]])
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
        request("full", bytes(SKIPPED + 1)),
        request("full", headers=["Expect: 100-continue"]),
        request("full", headers=["Connection: close"]),
        request("full").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("full").replace(b"Content-Length: 8", b"Transfer-Encoding: chunked").replace(b"12345678", b"0\r\n\r\n"),
    ],
    ids=["long", "expect", "close", "http-1.0", "chunked"],
)
def test_what_cannot_be_skipped_goes_the_usual_way(sent):
    async def run():
        turn = Full()
        async with connected(turn) as (reader, writer):
            writer.write(sent)
            status, body, _ = await answered(reader)
            if status == 100:
                status, body, _ = await answered(reader)
            assert (status, body.split()[0]) == (200, b"/v2/models/full/infer")
        assert turn.asked == []

    asyncio.run(run())


class Models:
    """A model that has room, one that has none, and one that is not loaded."""

    def get(self, name, version=""):
        if name not in ("free", "full", "gone") or version not in ("", "1"):
            raise NotFound("there is none")
        if name == "gone":
            raise Unavailable("it is not loaded")
        self.name = name
        return self

    def room(self):
        return 17

    def check_room(self, entering=0):
        if self.name == "full" or entering >= 3:
            raise Unavailable("7 requests are waiting already", "try again later", retry_after=1.2)


class Told(list):
    def tell(self, fields, status, seconds):
        self.append((fields, status, seconds))


def test_the_door_turns_away_what_a_full_queue_would_take_and_nothing_else():
    told = Told()
    door = AdmissionControl(Models(), told)
    for path in (b"/v2/models/full/infer", b"/v2/models/full/predict?top=3", b"/v2/models/full/versions/1/infer"):
        refusal = door(b"POST", path, "10.0.0.1", [(b"a", b"b")])
        assert refusal.room() == 17
        head, _, body = refusal.answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 2" in head
        assert f"\r\ncontent-length: {len(body)}\r\n".encode() in head
        assert json.loads(body) == {"error": "7 requests are waiting already; try again later"}
    assert [(fields["path"], fields["model"], status) for fields, status, _ in told] == [
        ("/v2/models/full/infer", "full", 503),
        ("/v2/models/full/predict", "full", 503),
        ("/v2/models/full/versions/1/infer", "full", 503),
    ]
    assert all(fields["headers"] == [(b"a", b"b")] for fields, *_ in told)

    async def let_in(method, path):
        return door(method, path, "", [])

    for method, path in (
        (b"GET", b"/v2/models/full/infer"),
        (b"POST", b"/v2/models/full"),
        (b"POST", b"/v2/models/full/versions/7/infer"),
        (b"POST", b"/v2/models/free/infer"),
        (b"POST", b"/v2/models/none/infer"),
        (b"POST", b"/v2/models/gone/infer"),
        (b"POST", b"/v2/repository/models/full/load"),
    ):
        assert asyncio.run(let_in(method, path)) is None
    assert len(told) == 3


def test_who_was_let_in_counts_until_it_is_in_the_queue():
    async def run():
        door = AdmissionControl(Models(), Told())
        ask = partial(door, b"POST", b"/v2/models/free/infer", "", [])
        at_once = [ask() is None for _ in range(5)]
        await asyncio.sleep(0)
        return at_once, ask() is None

    assert asyncio.run(run()) == ([True, True, True, False, False], True)
