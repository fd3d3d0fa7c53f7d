"""Turns requests away at the door: where the queue that one would join is full, it is refused before anything is made of it.

Refusing is no inference, but has a cost too, and beyond what a server can take there are many more refusals than answers.
So one is made of the request's first line alone, and its connection then waits in the `PausedConnections`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from relu_deploy.serving.errors import NotFound, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.json_codec import dump
from relu_deploy.serving.protocol.routes import asked_of
from relu_deploy.serving.telemetry.observer import RequestObserver

__all__ = ["AdmissionCheck", "AdmissionControl", "Refusal"]


class Refusal(NamedTuple):
    """answer: the whole of it, as it is sent. room: see `PausedConnections.hold`."""

    answer: bytes
    room: Callable[[], int]


#: takes a request's method, target, client and headers, and returns how it is turned away, None when it is not
AdmissionCheck = Callable[[bytes, bytes, str, Sequence[tuple[bytes, bytes]]], Refusal | None]

HEAD = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: {}\r\n\r\n"


class AdmissionControl:
    """A `AdmissionCheck` for the requests that a model's queue takes: infer and predict. What it turns away is counted and logged.

    All that arrives in one turn of the event loop passes here before any of it gets into a queue, so who was let in counts
    until the loop comes to it. It is to be called in the loop, right before the request's task is made.
    """

    def __init__(self, models: Models, access: RequestObserver) -> None:
        self._models, self._access = models, access
        self._entering: Counter[str] = Counter()

    def __call__(self, method: bytes, target: bytes, client: str, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        if method != b"POST":
            return None
        path = target.partition(b"?")[0].decode("latin-1")
        asked = asked_of(path)
        if asked is None or asked.verb not in ("infer", "predict"):
            return None
        name = asked.model
        try:
            model = self._models.get(name, asked.version or "")
        except (NotFound, Unavailable):
            return None
        try:
            model.check_room(self._entering[name])
        except Unavailable as busy:
            fields = {"method": "POST", "path": path, "client": client, "headers": headers, "model": name}
            self._access.tell(fields, busy.http, 0.0)
            body = dump({"error": busy.told})
            return Refusal(HEAD.format(len(body), math.ceil(busy.retry_after or 1.0)).encode() + body, model.room)
        self._entering[name] += 1
        asyncio.get_running_loop().call_soon(self._entered, name)
        return None

    def _entered(self, name: str) -> None:
        self._entering[name] -= 1
