"""What RFC 9110 and 9112 ask of a server, and clients that send without end."""

import contextlib
import json
import re
import resource
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from running import Running, answer_on

from relu_deploy.serving.transport.limits import HttpLimits

INFER = "/v2/models/digits/infer"
UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0] * 784}]}).encode()


@pytest.fixture(scope="module")
def server(digits_bundle):
    with Running(digits_bundle.path, "--threads", "1", "--log-json") as running:
        yield running


def statuses(server, *pieces, pause=0.05):
    """Return the status codes of all answers to what is sent piece by piece, until the server has nothing more to say."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as one:
        for piece in pieces:
            one.sendall(piece)
            time.sleep(pause)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := one.recv(2**16):
                received += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", received)]


def post(body=BODY, more="", path=INFER):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(more="", tail=b"0\r\n\r\n", extension=b""):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{more}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"%x%b\r\n%b\r\n" % (len(BODY), extension, BODY) + tail


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("cut", [None, -len(BODY), -10, 40, 120])
def test_an_upgrade_is_ignored_and_the_body_read_however_it_arrives(server, cut):
    whole = post(more=UPGRADE)
    pieces = (whole + LIVE,) if cut is None else (whole[:cut], whole[cut:] + LIVE)
    assert statuses(server, *pieces) == [200, 200]


def test_an_upgrade_is_ignored_with_a_chunked_body_without_one_and_again_and_again(server):
    get = LIVE.replace(b"\r\n\r\n", b"\r\n" + UPGRADE.encode() + b"\r\n")
    assert statuses(server, chunked(UPGRADE), LIVE) == [200, 200]
    assert statuses(server, get + get + LIVE) == [200, 200, 200]
    assert statuses(server, get, get, LIVE) == [200, 200, 200]
    assert statuses(server, post(more=UPGRADE), post(more=UPGRADE), LIVE) == [200, 200, 200]


def test_the_body_behind_an_upgrade_is_never_read_as_a_request(server):
    smuggled = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert statuses(server, post(smuggled, UPGRADE)) == [400]
    assert statuses(server, post(smuggled, UPGRADE) + LIVE) == [400, 200]


def test_thousands_of_pipelined_requests_are_all_answered_also_behind_the_end_of_the_sending_side(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
        one.sendall(LIVE * 3000 + post())
        one.shutdown(socket.SHUT_WR)
        received = b""
        while part := one.recv(2**16):
            received += part
    assert received.count(b"HTTP/1.1 200 OK") == 3001
    assert b'"outputs"' in received[-2000:]


def test_a_body_in_chunks_of_a_byte_is_read_whole_and_followed_by_the_next_request(server):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert statuses(server, head + body + LIVE) == [200, 200]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (LIVE.replace(b"Host: localhost\r\n", b""), [400]),
        (LIVE.replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: localhost\r\n"), [400]),
        (LIVE.replace(b"localhost", b""), [400]),
        (LIVE.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: localhost\r\n", b""), [200]),
        (LIVE.replace(b"localhost", b"evil.example"), [403]),
        (LIVE.replace(b"GET", b"HEAD"), [200]),
        (LIVE.replace(b"GET", b"OPTIONS"), [204]),
        (b"OPTIONS /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", [404]),
        (post(more="Expect: 100-continue\r\n"), [200]),
        (post(more="Expect: miracles\r\n"), [417]),
        (chunked(), [200]),
        (chunked(extension=b";a=b"), [200]),
        (chunked(extension=b";a\rb"), [400]),
        (chunked(extension=b"\r"), [400]),
        (chunked("Transfer-Encoding: identity\r\n"), [200]),
        (chunked("Content-Length: 5\r\n"), [400]),
        (post(more="Content-Length: 5\r\n"), [400]),
        (chunked(tail=b"0\r\nX-Sum: 1\r\n\r\n"), [200]),
        (post(more="Request-Timeout: soon\r\n"), [400]),
        (post(more="Request-Timeout: 10\r\n"), [200]),
        (post(more="Request-Timeout: 0.000001\r\n"), [504]),
    ],
)
def test_each_request_gets_the_answer_of_its_rfc(server, sent, expected):
    assert statuses(server, sent) == expected


@pytest.mark.parametrize("sent", [post()[:-10], chunked()[:-10], chunked(tail=b"0\r\n")], ids=["length", "chunk", "last chunk"])
def test_a_client_that_ends_within_a_body_is_answered_at_once_and_not_when_the_body_is_late(server, sent):
    # A body may take 30 seconds.
    assert server.raw(sent, timeout=8, half_close=True).startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200 " in server.raw(post(more="Connection: close\r\n"), timeout=8, half_close=True)


def test_a_connect_request_with_a_framing_that_does_not_exist_is_refused_without_an_error_in_the_log(server):
    sent = b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\nx"
    assert 400 in statuses(server, sent)
    server.errors.seek(0)
    assert "Traceback" not in server.errors.read()


def test_a_head_request_gets_no_body(server):
    received = server.raw(LIVE.replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length: 13" in head
    assert body == b""


@pytest.mark.parametrize(
    "endless",
    [b"X-Trailer: " + b"y" * 1000 + b"\r\n", b"a:b\r\n", b"y" * 1000],
    ids=["long trailers", "short trailers", "one trailer"],
)
def test_trailers_without_end_are_cut_off_like_headers(server, endless):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        one.sendall(head + (b"a: " if b":" not in endless else b""))
        sent, block = 0, endless * (2**16 // len(endless))
        with contextlib.suppress(OSError):
            while sent < 2**27:
                one.sendall(block)
                sent += len(block)
    # The kernel's buffers hold some megabytes.
    assert sent < 2**24
    assert server.ask("GET", "/v2/health/live")[0] == 200


def test_a_chunk_extension_without_end_is_cut_off(server):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2;".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        one.sendall(head)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 2**27:
                one.sendall(b"x" * 2**16)
                sent += 2**16
    assert sent < 2**24


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can only be set on Linux: run this there")
def test_a_client_that_holds_as_many_connections_as_there_can_be_keeps_no_other_out(digits_bundle):
    # Without what is tested, the good client waits for the connections to time out, which takes `header_seconds`.
    patience = HttpLimits().header_seconds * 0.7
    with Running(digits_bundle.path, "--threads", "1", forked=False) as server, contextlib.ExitStack() as stack:
        pid = server.process.pid
        most = len(list(Path(f"/proc/{pid}/fd").iterdir())) + 40
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        for start in (b"", b"POST / HTTP/1.1\r\nHost: localhost\r\n", post()[:-1]):
            for _ in range(150):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=patience))
                with contextlib.suppress(OSError):
                    one.sendall(start)
            with contextlib.closing(server.connect(patience)) as good:
                assert answer_on(good, "POST", INFER, BODY)[0] == 200


def test_pipelined_requests_that_are_no_longer_answered_take_no_answer_from_their_client(server):
    closing = post(more="Connection: close\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        one.sendall(LIVE * 20 + closing + post() * 200)
        time.sleep(0.5)
        received = b""
        while part := one.recv(2**16):  # a reset would raise
            received += part
    assert received.count(b"HTTP/1.1 200") == 21


@pytest.mark.parametrize(
    "garbage", [b"\x00\x01garbage\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
@pytest.mark.parametrize("before", [1, 3])
def test_what_is_no_request_does_not_take_the_answers_of_the_requests_before_it(server, garbage, before):
    assert statuses(server, post() * before + garbage)[:before] == [200] * before


def test_pictures_and_bodies_that_expand_are_refused(server):
    import gzip
    import struct
    import zlib

    bomb = gzip.compress(b'{"inputs":[' + b"{}," * 2**22 + b"{}]}")
    assert server.ask("POST", INFER, bomb, Content_Encoding="gzip")[0] == 413

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    strip = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 39_999_999, 8, 0, 0, 0, 0)) + chunk(b"IEND", b"")
    status, answer, _ = server.ask("POST", "/v2/models/digits/predict", strip, Content_Type="image/png")
    assert (status, "a side of 39999999 pixels" in answer["error"]) == (413, True)


def test_every_line_of_the_log_is_json_and_malformed_requests_do_not_flood_it(server):
    server.errors.seek(0)
    before = len(server.errors.read().splitlines())
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one:
            one.sendall(b"BAD\r\n\r\n")
    time.sleep(0.2)
    server.errors.seek(0)
    lines = server.errors.read().splitlines()
    assert all(json.loads(line)["event"] for line in lines)
    assert 1 <= len(lines) - before < 200
