"""Malformed and hostile requests over HTTP and gRPC, determined by a generator of random numbers."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from copy import deepcopy
from typing import Any

from media_mutations import png_of

__all__ = ["GRPC_ALLOWED", "GRPC_CALLS", "flipped", "grpc_request", "http_request", "mutate"]

FIELDS = (
    "name",
    "shape",
    "datatype",
    "data",
    "parameters",
    "binary_data_size",
    "id",
    "inputs",
    "outputs",
    "timeout",
    "binary_data",
    "classification",
    "priority",
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    10**30,
    1e308,
    1.5,
    "",
    "x",
    "FP32",
    "BYTES",
    "\x00",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [0],
    [[1], [2, 3]],
    [2**40, 2],
    ["FP32"],
    {"a": {}},
)
PATHS = (
    "/v2/models/digits/infer",
    "/v2/models/digits/infer",
    "/v2/models/digits/predict",
    "/v2/models/digits/predict?top=1",
    "/v2/models/digits/predict?top=nan&threshold=-1&mask=x",
    "/v2/models/digits/relus",
    "/v2/models/digits",
    "/v2/models/digits/versions/1/infer",
    "/v2/models/digits/versions/../infer",
    "/v2/models//infer",
    "/v2/models/%ff/infer",
    "/v2/models/..%2f..%2fetc/infer",
    "/v2/models/digits/stats",
    "/v2/models/stats",
    "/v2/repository/index",
    "/v2/repository/models/digits/load",
    "/v2/repository/models/..%2fx/load",
    "/v2/models/digits/monitor",
    "/page/models",
    "/metrics",
    "/v2",
    "/",
    "/%00",
    "*",
    "http://evil.example/v2",
    "/" + "a" * 3000,
)
HEADERS = (
    "Content-Encoding: gzip",
    "Content-Encoding: deflate",
    "Content-Encoding: br, gzip, gzip",
    "Inference-Header-Content-Length: 3",
    "Inference-Header-Content-Length: 0",
    "Inference-Header-Content-Length: -1",
    "Inference-Header-Content-Length: " + "9" * 400,
    "Content-Type: text/plain",
    "Content-Type: multipart/form-data; boundary=x",
    "Content-Type: multipart/form-data",
    "Content-Type: multipart/form-data; boundary=" + "y" * 500,
    "Content-Type: image/png",
    "Content-Type: application/json; charset=utf-7",
    "Connection: Upgrade\r\nUpgrade: h2c",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
    "Connection: keep-alive, close, \x01",
    "Expect: 100-continue",
    "Expect: more",
    "Request-Timeout: nan",
    "Request-Timeout: 1e-9",
    "Request-Timeout: -inf",
    "Origin: http://evil.example",
    "Origin: null",
    "Authorization: Bearer \xff",
    "Authorization: Bearer " + "k" * 4000,
    "traceparent: 00-x",
    "traceparent: 00-" + "0" * 32 + "-" + "0" * 16 + "-01",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: xchunked",
    "Content-Length: 7",
    "Content-Length: +7",
    "Content-Length: 0x7",
    "Content-Length: " + "9" * 30,
    "Content-Length : 7",
    "Host: b",
    "X: " + "y" * 20_000,
    "Accept-Encoding: gzip;q=nan, *;q=9",
    "If-None-Match: *",
    "Range: bytes=0-99999999999",
    " folded: x",
    "X\x00: y",
)
GRPC_CALLS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelInfer",
    "ModelInfer",
    "ModelInfer",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "Nosuch",
)

#: status codes of gRPC that say what is wrong with a request, or that there is too much to do
GRPC_ALLOWED = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)


def mutate(tree: Any, generator: random.Random) -> None:
    """Change one place of a JSON value."""
    if isinstance(tree, dict) and (not tree or generator.random() < 0.2):
        tree[generator.choice(FIELDS)] = deepcopy(generator.choice(SCALARS))
    elif isinstance(tree, dict | list) and tree:
        key = generator.choice(list(tree)) if isinstance(tree, dict) else generator.randrange(len(tree))
        if isinstance(tree[key], dict | list) and generator.random() < 0.6:
            mutate(tree[key], generator)
        else:
            tree[key] = deepcopy(generator.choice(SCALARS))
    elif isinstance(tree, list):
        tree.append(deepcopy(generator.choice(SCALARS)))


def flipped(content: bytes, generator: random.Random, most: int) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randrange(most)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def http_request(generator: random.Random, pictures: list[bytes]) -> bytes:
    """Return the bytes of a request for a server of the digits model. pictures: valid ones."""
    body = _body(generator, pictures)
    lines = [generator.choice(HEADERS) for _ in range(generator.randrange(3))]
    if "Content-Encoding: gzip" in lines and generator.random() < 0.7:
        body = gzip.compress(body)
    elif "Content-Encoding: deflate" in lines and generator.random() < 0.7:
        body = zlib.compress(body)
    if not any(line.startswith(("Transfer", "Content-Length")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    if "Transfer-Encoding: chunked" in lines and body:
        size = generator.choice(
            (b"%x" % len(body),) * 4 + (b"-1", b"ffffffffffffffff", b"%x;a=b" % len(body), b"%x\r" % len(body), b"")
        )
        body = b"%b\r\n%b\r\n0\r\n%b\r\n" % (
            size,
            body,
            generator.choice((b"", b"A: b\r\n", b"A b\r\n", b"Content-Length: 3\r\n")),
        )
    method = generator.choice(
        ("POST", "POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "CONNECT", "BREW")
    )
    top = f"{method} {generator.choice(PATHS)} HTTP/{generator.choice(('1.1',) * 6 + ('1.0', '2.0', '0.9', '1.1 x'))}"
    end = generator.choice(("\r\n",) * 12 + ("\n", "\r"))
    sent = end.join([top, "Host: localhost", *lines, "", ""]).encode("latin-1") + body
    if generator.random() < 0.03:
        sent = flipped(sent, generator, 8)
    return sent[: generator.randrange(1, len(sent))] if generator.random() < 0.05 else sent


def _body(generator: random.Random, pictures: list[bytes]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0] * 784}
    tree: dict[str, Any] = {"inputs": [tensor]}
    valid = json.dumps(tree).encode()
    kind = generator.choice(
        ("valid", "mutated", "mutated", "flipped", "picture", "bomb", "form", "empty", "zeros", "deep", "binary")
    )
    if kind == "mutated":
        for _ in range(generator.randrange(1, 4)):
            mutate(tree, generator)
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    if kind == "binary":
        tensor |= {"parameters": {"binary_data_size": generator.choice((784 * 4, 1, -1, 2**40, "x", None, [], True))}}
        del tensor["data"]
        return json.dumps(tree).encode() + bytes(784 * 4)
    if kind == "bomb":
        width, height = generator.choice(
            ((1, 39_999_999), (39_999_999, 1), (6000, 6000), (2**31 - 1, 2**31 - 1), (0, 0), (28, 28))
        )
        return png_of(width, height, generator.choice((1, 8, 16)), generator.choice((0, 2, 3, 6, 9)))
    form = b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n" + pictures[0] + b"\r\n--x--\r\n"
    deep = generator.choice((b"[" * 5000, b'{"a":' * 5000, b'{"inputs":[' + b"[" * 500 + b"1" + b"]" * 500 + b"]}"))
    bodies = {"valid": valid, "empty": b"", "zeros": b"\0" * 99, "deep": deep, "form": flipped(form, generator, 3)}
    if kind in bodies:
        return bodies[kind]
    return flipped(valid if kind == "flipped" else generator.choice(pictures), generator, 6)


def grpc_request(generator: random.Random, message: bytes) -> tuple[str, bytes]:
    """Return the name of a call and a garbled message for it. message: a valid ModelInferRequest with raw contents at its end."""
    call = generator.choice(GRPC_CALLS)
    kind = generator.choice(("flipped", "flipped", "cut", "random", "empty"))
    if kind == "flipped":
        return call, flipped(message[:60], generator, 5) + message[60:]
    if kind == "cut":
        return call, message[: generator.randrange(len(message))]
    return call, b"" if kind == "empty" else generator.randbytes(generator.randrange(100))
