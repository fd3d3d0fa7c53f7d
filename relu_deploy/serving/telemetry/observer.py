"""Who is told of a request when it has ended, and what: the log, and traces where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["BESIDE", "CUT", "RequestObserver"]

#: characters of what a client chose that are kept
CUT = 128
#: fields that are no text to be written down as it is
BESIDE = ("timings", "headers")


class RequestObserver(Protocol):
    """Takes note of requests. Called on the event loop, once for each."""

    def tell(self, fields: Mapping[str, Any], status: int, seconds: float) -> None:
        """Take note of one that has just ended. status: HTTP's, 0 where the client left before there was an answer.

        fields: its `method` ("gRPC" for every call) and `path`; `client`, `model`, `id`, `timings` (a `Timings`) and
        `headers` (pairs as they came: bytes over HTTP with names in lower case, text over gRPC) where they are known.
        """
