"""How much and how slowly an HTTP client may send."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SHARE_CLOSED", "HttpLimits", "LingerLimits"]

#: share of the connections, and of the TLS handshakes, that are given up at a time where a new one needs their file descriptors
SHARE_CLOSED = 1 / 8


@dataclass(frozen=True)
class LingerLimits:
    """How much is read and discarded from a client that still sends when its answer is complete.

    Attributes:
        seconds: In all.
        silence: Seconds without a byte.
        size: Bytes.
    """

    seconds: float = 30.0
    silence: float = 5.0
    size: int = 2**28


@dataclass(frozen=True)
class HttpLimits:
    """The limits of HTTP requests.

    Attributes:
        max_body: Bytes of a body, also once it is decompressed.
        body_seconds: Until a whole body has arrived.
        header_seconds: Until the headers of a request are complete.
        header_bytes: Of all headers of a request.
        idle_seconds: That an idle connection is kept while the server shuts down, because a request may be on its way.
        linger: For clients that still send when their answer is complete.
    """

    max_body: int = 64 * 2**20
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    header_bytes: int = 2**16
    idle_seconds: float = 0.5
    linger: LingerLimits = field(default_factory=LingerLimits)
