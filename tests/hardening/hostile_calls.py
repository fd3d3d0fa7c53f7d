"""Attacks on a gRPC port, each for some seconds from another process, while another client's calls are timed beside it.

The frames of HTTP/2 (RFC 9113) are written by hand, because no client library sends what these send.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from untrusting import connected

__all__ = ["CALL_ATTACKS", "attack_beside_calls"]

HEADERS, DATA, RESET, PING, END_HEADERS = 1, 0, 3, 6, 4
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK writes one that is in no table."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
HEAD = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
#: the beginning of a message of 64 KiB
BEGUN = b"\0\0\1\0\0" + b"x" * 100


def _call(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, HEAD)


def _stream_of(make: Callable[[int], bytes]) -> Callable[[int, float], int]:
    """Return an attack that sends what `make` returns for one stream after the other, and reads what comes back."""

    def attack(port: int, until: float) -> int:
        sent = 0
        with _connected(port) as one:
            one.sendall(PREFACE)
            for stream in range(1, 2**30, 100):
                if time.monotonic() > until:
                    break
                one.sendall(b"".join(make(stream + at) for at in range(0, 100, 2)))
                sent += 50
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    while one.recv(2**16):
                        pass
                one.settimeout(5)
        return sent

    return attack


#: whether connections are made over TLS
_encrypted = False


def _connected(port: int) -> socket.socket:
    return connected(port, _encrypted, timeout=5, protocols=("h2",))


def _reconnects(sent: bytes, resets: bool) -> Callable[[int, float], int]:
    def attack(port: int, _: float) -> int:
        with _connected(port) as one:
            one.sendall(sent)
            if resets:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return 1

    return attack


#: by name: one attempt, called again and again with the port and the end of the attack; returns what it counted
CALL_ATTACKS: dict[str, Callable[[int, float], int]] = {
    "calls without a message": _stream_of(_call),
    "calls with the beginning of a message": _stream_of(lambda stream: _call(stream) + frame(DATA, 0, stream, BEGUN)),
    "calls that are reset at once": _stream_of(lambda stream: _call(stream) + frame(RESET, 0, stream, CANCEL)),
    "pings": _stream_of(lambda _: frame(PING, 0, 0, b"12345678")),
    "connections that are closed at once": _reconnects(b"", resets=False),
    "connections that are reset at once": _reconnects(PREFACE, resets=True),
    "connections with one call": _reconnects(PREFACE + _call(1), resets=False),
}


def attack_beside_calls(
    port: int, name: str, seconds: float, message: bytes, attackers: int = 2, authority: bytes | None = None
) -> dict[str, Any]:
    """Attack a gRPC port for some seconds and return how long a good client's calls took meanwhile, each half on a new connection.

    authority: certificates of the port's authority, in PEM, None for plain TCP.

    Returns:
        `requests`: how many the client sent, `worst_seconds`: the longest, `failed`: those that failed, by their status code.
    """
    import grpc

    words = [sys.executable, str(Path(__file__)), str(port), name, str(seconds), str(attackers), str(int(authority is not None))]
    attack = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE)
    assert attack.stdout is not None
    took: list[float] = []
    failed: Counter[str] = Counter()

    def call(on: grpc.Channel) -> None:
        began = time.perf_counter()
        code = on.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(message, timeout=30).code().name
        took.append(time.perf_counter() - began)
        failed[code] += code != "OK"

    def channel() -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if authority is None:
            return grpc.insecure_channel(f"127.0.0.1:{port}", options)
        return grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority), options)

    try:
        with channel() as kept:
            call(kept)
            attack.stdout.readline()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                call(kept)
                with channel() as new:
                    call(new)
                time.sleep(0.02)
    finally:
        attack.kill()
        attack.communicate()
    return {"requests": len(took), "worst_seconds": max(took), "failed": dict(+failed)}


def main() -> None:
    """Attack: the process that `attack_beside_calls` starts."""
    global _encrypted
    port, name, seconds, attackers = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    _encrypted = sys.argv[5] == "1"
    until = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                CALL_ATTACKS[name](port, until)

    print("attacking", flush=True)
    for _ in range(attackers):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(seconds)


if __name__ == "__main__":
    main()
