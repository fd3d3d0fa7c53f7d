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

from relu_deploy.serve.connection import SKIPPED, Connection, Manners
from relu_deploy.serve.door import Door
from relu_deploy.serve.status import Busy, NotFound

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
    """Turns away all that is asked of the model called `full`."""

    def __init__(self):
        self.asked = []

    def __call__(self, method, target, client, headers):
        self.asked.append((method, target, client, headers))
        return b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy" if b"/full/" in target else None


async def answered(reader):
    """Return the status and the body of the next answer, and when it came."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
    return int(head[9:12]), await reader.readexactly(length), time.perf_counter()


@contextlib.asynccontextmanager
async def connected(turn, **manners):
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    given = {"config": config, "server_state": state, "app_state": {}}
    shared = Manners(turn=turn, pause=PAUSE, **manners)
    server = await asyncio.get_running_loop().create_server(partial(Connection, shared, **given), "127.0.0.1", 0)
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
            raise Busy("it is not loaded")
        self.name = name
        return self

    def check_room(self):
        if self.name == "full":
            raise Busy("7 requests are waiting already", "try again later", retry_after=1.2)


class Told(list):
    def tell(self, fields, status, seconds):
        self.append((fields, status, seconds))


def test_the_door_turns_away_what_a_full_queue_would_take_and_nothing_else():
    told = Told()
    door = Door(Models(), told)
    for path in (b"/v2/models/full/infer", b"/v2/models/full/predict?top=3", b"/v2/models/full/versions/1/infer"):
        head, _, body = door(b"POST", path, "10.0.0.1", [(b"a", b"b")]).partition(b"\r\n\r\n")
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
    for method, path in (
        (b"GET", b"/v2/models/full/infer"),
        (b"POST", b"/v2/models/full"),
        (b"POST", b"/v2/models/full/versions/7/infer"),
        (b"POST", b"/v2/models/free/infer"),
        (b"POST", b"/v2/models/none/infer"),
        (b"POST", b"/v2/models/gone/infer"),
        (b"POST", b"/v2/repository/models/full/load"),
    ):
        assert door(method, path, "", []) is None
    assert len(told) == 3
