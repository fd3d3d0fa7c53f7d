"""Turns requests away at the door: where the queue that one would join is full, it is refused before anything is made of it.

Refusing is no inference, but has a cost too, and beyond what a server can take there are many more refusals than answers.
So one is made of the request's first line alone, and its connection is then not read for a while (`Connection`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from relu_deploy.serve.codec import dump
from relu_deploy.serve.models import Models
from relu_deploy.serve.status import Busy, NotFound
from relu_deploy.serve.telling import Telling

__all__ = ["Door", "Turn"]

#: takes a request's method, target, client and headers, and returns the whole answer where it is turned away, else None
Turn = Callable[[bytes, bytes, str, Sequence[tuple[bytes, bytes]]], bytes | None]

HEAD = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: {}\r\n\r\n"


class Door:
    """A `Turn` for the requests that a model's queue takes: infer and predict. What it turns away is counted and logged."""

    def __init__(self, models: Models, access: Telling) -> None:
        self._models, self._access = models, access

    def __call__(self, method: bytes, target: bytes, client: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        if method != b"POST":
            return None
        path = target.partition(b"?")[0].decode("latin-1")
        version = ""
        match path.strip("/").split("/"):
            case ["v2", "models", name, "infer" | "predict"]:
                pass
            case ["v2", "models", name, "versions", version, "infer" | "predict"]:
                pass
            case _:
                return None
        try:
            model = self._models.get(name, version)
        except (NotFound, Busy):
            return None
        try:
            model.check_room()
        except Busy as busy:
            fields = {"method": "POST", "path": path, "client": client, "headers": headers, "model": name}
            self._access.tell(fields, busy.http, 0.0)
            body = dump({"error": busy.told})
            return HEAD.format(len(body), math.ceil(busy.retry_after or 1.0)).encode() + body
        return None
