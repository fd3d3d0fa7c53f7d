"""Admission control: every request that runs a model passes here once, and gets a place in the model's queue or a 503.

Refusing is cheaper than running, but not free, and beyond what a server can do there are many more refusals than answers.
So where a request's headers allow it, it is refused before its body is read, and its connection then pauses
(`PausedConnections`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from relu_deploy.serving.errors import NotFound, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.json_codec import dump
from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.serving.telemetry.observer import RequestObserver

__all__ = ["AdmissionControl", "EarlyAdmission", "Refusal"]


class Refusal(NamedTuple):
    """A refusal that is sent before the request's body is read.

    Attributes:
        response: The whole HTTP response.
        free_slots: How many more requests the queue takes; see `PausedConnections.hold`.
    """

    response: bytes
    free_slots: Callable[[], int]


#: takes a request whose headers are complete, and returns how it is refused, None when it is not
EarlyAdmission = Callable[[RequestContext], Refusal | None]

HEAD = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: {}\r\n\r\n"


class AdmissionControl:
    """Gives requests places in the queues of `models`. For the event loop's thread."""

    def __init__(self, models: Models, observer: RequestObserver) -> None:
        """observer: is notified of requests that are refused before they have become one of the HTTP application."""
        self._models, self._observer = models, observer

    def admit(self, context: RequestContext) -> None:
        """Give the request a place in its model's queue, unless it has one.

        Raises:
            NotFound: If there is no such model or version.
            Unavailable: If the queue is full, or the model is not loaded.
        """
        if context.slot is None:
            context.slot = self._models.get(context.route.model, context.route.version).reserve()

    def admit_early(self, context: RequestContext) -> Refusal | None:
        """Admit a request whose body has not been read, or return its refusal, counted and logged.

        Requests that run no queued model, and those that are wrong in another way, are left to the HTTP application.
        """
        if context.route.endpoint not in ("infer", "predict"):
            return None
        try:
            model = self._models.get(context.route.model, context.route.version)
        except (NotFound, Unavailable):
            return None
        try:
            self.admit(context)
        except Unavailable as error:
            context.model = context.route.model
            self._observer.on_complete(context, error.http, 0.0)
            body = dump({"error": error.text})
            return Refusal(HEAD.format(len(body), math.ceil(error.retry_after or 1.0)).encode() + body, model.free_slots)
        return None
