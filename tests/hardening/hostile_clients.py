"""Attacks on a running server, each for some seconds, while another client's requests are timed beside it.

All but those of TLS_ATTACKS can be tried over TLS as well.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from media_mutations import png_of
from request_cases import http_request
from untrusting import connected, insecure_context

from relu_deploy.serving.transport.sockets import raise_descriptor_limit

__all__ = ["ATTACKS", "GOOD_REQUEST", "TLS_ATTACKS", "attack_beside_a_client", "post"]

INFER, PREDICT = "/v2/models/digits/infer", "/v2/models/digits/predict"
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0] * 784}
#: seconds after which an attacker gives up a connection
PATIENCE = 5.0


#: whether connections are made over TLS; without checking who answers, as attackers do
_encrypted = False
RESET = struct.pack("ii", 1, 0)


def _connected(port: int, timeout: float = PATIENCE, encrypted: bool | None = None) -> socket.socket:
    return connected(port, _encrypted if encrypted is None else encrypted, timeout)


@cache
def _client_hello() -> bytes:
    """Return the first message of a TLS client."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        insecure_context().wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


def post(path: str, body: bytes, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


GOOD_REQUEST = post(INFER, json.dumps({"inputs": [TENSOR]}).encode())


def _exchange(port: int, sent: bytes, encrypted: bool | None = None) -> None:
    with contextlib.suppress(OSError), _connected(port, encrypted=encrypted) as one:
        one.sendall(sent)
        while one.recv(2**16):
            pass


def _endless(head: bytes, block: bytes, pause: float = 0.0) -> Callable[[int, float, random.Random], None]:
    def attack(port: int, until: float, _: random.Random) -> None:
        with contextlib.suppress(OSError), _connected(port) as one:
            one.sendall(head)
            while time.monotonic() < until:
                one.sendall(block)
                time.sleep(pause)

    return attack


def _repeated(make: Callable[[random.Random], bytes]) -> Callable[[int, float, random.Random], None]:
    def attack(port: int, _: float, draw: random.Random) -> None:
        _exchange(port, make(draw))

    return attack


def _many_connections(port: int, until: float, _: random.Random) -> None:
    """Open connections that send nothing, or half of a request."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            for at in range(200):
                one = stack.enter_context(_connected(port))
                one.sendall(b"" if at % 2 else b"POST /v2/mo")
        time.sleep(max(0.0, min(2.0, until - time.monotonic())))


def _slow_bodies(port: int, until: float, _: random.Random) -> None:
    """Open 1,250 connections, as each of four attackers does, and send a byte of a body on each of them twice a second."""
    with contextlib.ExitStack() as stack:
        connections = []
        while len(connections) < 1250 and time.monotonic() < until:
            with contextlib.suppress(OSError):
                one = stack.enter_context(_connected(port))
                one.sendall(SLOW_BODY)
                connections.append(one)
        while time.monotonic() < until:
            began = time.monotonic()
            for one in connections:
                with contextlib.suppress(OSError):
                    one.sendall(b"[")
            time.sleep(max(0.0, began + 0.5 - time.monotonic()))


def _nothing(_: int, until: float, __: random.Random) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def _reset_at_once(port: int, _: float, __: random.Random) -> None:
    """Send a request and close with a reset."""
    with contextlib.suppress(OSError), _connected(port) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.sendall(GOOD_REQUEST)


def _unread_answers(port: int, until: float, _: random.Random) -> None:
    """Send requests and read none of the answers."""
    with contextlib.suppress(OSError), _connected(port, 1) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while time.monotonic() < until:
            one.sendall(b"GET /v2/models/digits HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)


SLOW_BODY = post(INFER, b"")[:-5] + b"9999\r\n\r\n["
CHUNKED = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
CLOSE = "Connection: close\r\n"


@cache
def _bomb(name: str) -> bytes:
    """Return a body, compressed where it is JSON, that is made once."""
    if name == "objects":
        return gzip.compress(b'{"inputs":[' + b"{}," * (2**20 - 1) + b"{}]}")
    if name == "numbers":
        tensor = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[9],"data":['
        return gzip.compress(tensor + b"0," * (15 * 2**20) + b"0]}]}")
    if name == "zeros":
        return gzip.compress(gzip.compress(bytes(2**28)))
    width, height = {"row": (39_999_999, 1), "column": (1, 39_999_999), "picture": (6300, 6300)}[name]
    return png_of(width, height, rows=bytes(height * (1 + width)))


#: by name: one attempt, called again and again with the port, the end of the attack and random numbers
ATTACKS: dict[str, Callable[[int, float, random.Random], None]] = {
    "malformed requests": _repeated(lambda draw: http_request(draw, [png_of(40, 30), png_of(28, 28)])),
    "trailers without end": _endless(CHUNKED + b"2\r\n{}\r\n0\r\n", (b"X-Trailer: " + b"y" * 1000 + b"\r\n") * 60),
    "headers without end": _endless(b"GET / HTTP/1.1\r\nHost: localhost\r\n", (b"A: " + b"y" * 500 + b"\r\n") * 60),
    "slow headers": _endless(b"GET / HTTP/1.1\r\n", b"A: b\r\n", 0.5),
    "slow body": _endless(post(INFER, b"")[:-5] + b"9999\r\n\r\n", b"[", 0.5),
    "5,000 slow bodies": _slow_bodies,
    "chunks of a byte": _endless(CHUNKED, b"1\r\n[\r\n" * 5000),
    "large bodies": _repeated(lambda _: post(INFER, b" " * 60 * 2**20, CLOSE)),
    "JSON of many objects": _repeated(lambda _: post(INFER, _bomb("objects"), CLOSE + "Content-Encoding: gzip\r\n")),
    "JSON of many numbers": _repeated(lambda _: post(INFER, _bomb("numbers"), CLOSE + "Content-Encoding: gzip\r\n")),
    "gzip of zeros": _repeated(lambda _: post(INFER, _bomb("zeros"), CLOSE + "Content-Encoding: gzip\r\n")),
    "nested JSON": _repeated(lambda _: post(INFER, b"[" * 10**6, CLOSE)),
    "pictures of one row": _repeated(lambda _: post(PREDICT, _bomb("row"), CLOSE + "Content-Type: image/png\r\n")),
    "pictures of one column": _repeated(lambda _: post(PREDICT, _bomb("column"), CLOSE + "Content-Type: image/png\r\n")),
    "large pictures": _repeated(lambda _: post(PREDICT, _bomb("picture"), CLOSE + "Content-Type: image/png\r\n")),
    "idle connections": _many_connections,
    "resets": _reset_at_once,
    "answers that are not read": _unread_answers,
    "unknown models": _repeated(lambda draw: post(f"/v2/models/{draw.randrange(10**9)}/infer", b"{}", CLOSE)),
    "valid requests": _repeated(lambda _: GOOD_REQUEST.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1)),
}  # fmt: skip


def _hellos(port: int, until: float, _: random.Random) -> None:
    """Begin 200 handshakes and end none."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            for _number in range(200):
                stack.enter_context(_connected(port, encrypted=False)).sendall(_client_hello())
        time.sleep(max(0.0, min(2.0, until - time.monotonic())))


def _hello_and_leave(port: int, _: float, __: random.Random) -> None:
    with contextlib.suppress(OSError), _connected(port, encrypted=False) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.sendall(_client_hello())


def _handshake_and_leave(port: int, _: float, __: random.Random) -> None:
    with contextlib.suppress(OSError), _connected(port, encrypted=True):
        pass


#: as ATTACKS, of a port with TLS
TLS_ATTACKS: dict[str, Callable[[int, float, random.Random], None]] = {
    "handshakes that are not ended": _hellos,
    "handshakes whose clients leave": _hello_and_leave,
    "handshakes without a request": _handshake_and_leave,
    "requests that are not encrypted": lambda port, _, __: _exchange(port, GOOD_REQUEST, encrypted=False),
}


def attack_beside_a_client(
    port: int, name: str, seconds: float, attackers: int = 4, seed: int = 0, encrypted: bool = False
) -> dict[str, float]:
    """Attack a server for some seconds from another process and return how long a good client's requests took meanwhile.

    encrypted: attackers and the client speak TLS.

    Returns:
        `requests`: how many the client sent, `worst_seconds`: the longest, `failed`: those without a good answer.
    """
    words = [sys.executable, str(Path(__file__)), str(port), name, str(seconds), str(attackers), str(seed), str(int(encrypted))]
    attack = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE)
    assert attack.stdout is not None
    try:
        attack.stdout.readline()
        until, took, failed = time.monotonic() + seconds, [], 0
        while time.monotonic() < until:
            began = time.perf_counter()
            failed += not _is_answered(port, encrypted)
            took.append(time.perf_counter() - began)
            time.sleep(0.02)
    finally:
        attack.kill()
        attack.communicate()
    return {"requests": len(took), "worst_seconds": max(took), "failed": failed}


def _is_answered(port: int, encrypted: bool) -> bool:
    received = b""
    with contextlib.suppress(OSError), _connected(port, 60, encrypted) as one:
        one.sendall(GOOD_REQUEST.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1))
        while piece := one.recv(2**16):
            received += piece
    return received.startswith(b"HTTP/1.1 200")


def main() -> None:
    """Attack: the process that `attack_beside_a_client` starts."""
    global _encrypted
    port, name, seconds, attackers, seed = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    _encrypted = sys.argv[6] == "1"
    until = 0.0

    def work(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        while time.monotonic() < until:
            attack(port, until, draw)

    raise_descriptor_limit()
    attack = (ATTACKS | TLS_ATTACKS).get(name, _nothing)
    attack(port, 0.0, random.Random(seed))  # makes what is sent again and again
    print("attacking", flush=True)
    until = time.monotonic() + seconds
    for number in range(attackers):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    time.sleep(seconds)


if __name__ == "__main__":
    main()
