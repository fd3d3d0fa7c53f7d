"""Requests that a web page of another origin can let its reader's browser send, also after DNS rebinding, and their judgment.

A page can neither change anything nor read anything: a request that is answered with content must not be readable by the page
(no `Access-Control-Allow-Origin`, `Cross-Origin-Resource-Policy: same-origin`), one under a foreign Host name gets no content.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Attempt", "attempts", "violation"]

FOREIGN_ORIGINS = ("https://evil.example", "http://evil.example:8000", "null", "http://localhost.evil.example", "file://", "")
FOREIGN_HOSTS = (
    "evil.example",
    "rebind.evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example.",
    "",
)
#: content types that a page may send without a preflight, and none
SIMPLE_TYPES = ("text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None)
CHANGING = (
    "/v2/repository/models/digits/unload",
    "/v2/repository/models/digits/load",
    "/v2/models/digits/infer",
    "/v2/models/digits/predict",
    "/v2/models/digits/relus",
)
READING = ("/v2", "/v2/models/digits", "/v2/models/digits/config", "/v2/models/digits/stats", "/v2/models/stats", "/page/models")
READING += ("/v2/models/digits/monitor", "/", "/metrics")


@dataclass(frozen=True)
class Attempt:
    """A request of a browser.

    Attributes:
        method: Of the request.
        path: What it is for.
        headers: Those that the page or the browser sets, with Host.
        rebinding: Whether the page has the server's address under a name of its own: it can then read every answer.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    rebinding: bool

    def to_bytes(self) -> bytes:
        body = b"{}" if self.method == "POST" else b""
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {text}" for name, text in self.headers)]
        return "\r\n".join([*lines, "Connection: close", f"Content-Length: {len(body)}", "", ""]).encode() + body


def attempts(host: str) -> Iterator[Attempt]:
    """Yield every attempt against a server whose own Host is `host`."""
    for origin, path, kind in itertools.product(FOREIGN_ORIGINS, CHANGING, SIMPLE_TYPES):
        sent = [("Host", host), ("Origin", origin), ("Sec-Fetch-Site", "cross-site")]
        yield Attempt("POST", path, tuple(sent + ([] if kind is None else [("Content-Type", kind)])), rebinding=False)
    for origin, path in itertools.product(FOREIGN_ORIGINS, CHANGING):
        # A page may send any content type after a preflight, which must fail.
        preflight = (("Host", host), ("Origin", origin), ("Access-Control-Request-Method", "POST"))
        yield Attempt("OPTIONS", path, (*preflight, ("Access-Control-Request-Headers", "content-type")), rebinding=False)
    for origin, path, method in itertools.product(FOREIGN_ORIGINS, READING, ("GET", "HEAD")):
        yield Attempt(method, path, (("Host", host), ("Origin", origin), ("Sec-Fetch-Site", "cross-site")), rebinding=False)
    for path in READING:  # an image or script of the page sends no Origin
        yield Attempt(
            "GET", path, (("Host", host), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Dest", "script")), rebinding=False
        )
    for name, path in itertools.product(FOREIGN_HOSTS, (*CHANGING, *READING)):
        # To the browser it is the page's own origin.
        own = (("Host", name), ("Sec-Fetch-Site", "same-origin"))
        if path in READING:
            yield Attempt("GET", path, own, rebinding=True)
        for kind in ("application/json", "text/plain", "image/png"):
            yield Attempt("POST", path, (*own, ("Origin", f"http://{name}"), ("Content-Type", kind)), rebinding=True)


def violation(attempt: Attempt, answer: bytes) -> str:
    """Return what the answer lets the page do, "" for nothing."""
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    fields = [line.lower() for line in head.split(b"\r\n")[1:]]
    if any(line.startswith(b"access-control-allow-origin") for line in fields):
        return f"{status}: the page may read the answer"
    if attempt.method == "POST" and status < 400 and status != 0:
        return f"{status}: the request is executed"
    if attempt.rebinding and status < 400 and body:
        return f"{status}: the page reads {len(body)} bytes"
    if status < 400 and body and b"cross-origin-resource-policy: same-origin" not in fields:
        return f"{status}: the answer may be embedded"
    return ""
