"""Admission control: every request that runs a model passes here once, and gets a place in the model's queue or a refusal.

Refusing is cheaper than running, but not free, and beyond what a server can do there are many more refusals than answers.
So where a request's headers allow it, it is refused before its body is read, and its connection then pauses
(`PausedConnections`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from relu_deploy.serving.errors import ServeError, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.json_codec import dump
from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.transport.access import AccessPolicy

__all__ = ["AdmissionControl", "AdmissionLimits", "EarlyAdmission", "Refusal"]


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


@dataclass(frozen=True)
class AdmissionLimits:
    """The limits of all requests together.

    Attributes:
        memory: Bytes of bodies, and of what is decoded from them, that all requests in progress may hold.
        per_client: Requests of one client address that may be in progress, 0 for no limit.
    """

    memory: int = 2**30
    per_client: int = 0


class AdmissionControl:
    """Grants access, and gives requests places in the queues of `models`. For the event loop's thread."""

    def __init__(
        self,
        models: Models,
        observer: RequestObserver,
        access: AccessPolicy | None = None,
        limits: AdmissionLimits = AdmissionLimits(),  # it is frozen
    ) -> None:
        """Make the control.

        Args:
            models: Whose queues the requests join.
            observer: Is notified of requests that are refused before they have become one of the HTTP application.
            access: Decides who may do what, None for the default options.
            limits: Of all requests together.
        """
        self._models, self._observer, self._limits = models, observer, limits
        self.access = access or AccessPolicy()
        self._memory = 0
        self._clients: Counter[str] = Counter()

    def admit(self, context: RequestContext) -> None:
        """Give the request a place in its model's queue, unless it has one.

        Raises:
            NotFound: If there is no such model or version.
            Unavailable: If the queue is full, its client has too many requests, or the model is not loaded.
        """
        if context.slot is not None:
            return
        slot = self._models.get(context.route.model, context.route.version).reserve()
        if self._limits.per_client and not context.counted:
            if self._clients[context.client] >= self._limits.per_client:
                slot.release()
                count = self._clients[context.client]
                raise Unavailable(f"this client has {count} requests in progress", "try again later", retry_after=1.0)
            self._clients[context.client] += 1
            context.counted = True
        context.slot = slot

    def hold_memory(self, context: RequestContext, size: int) -> None:
        """Count `size` bytes more that the request holds until it ends.

        Raises:
            Unavailable: If all requests together would hold more than the server's limit.
        """
        if self._memory + size > self._limits.memory:
            raise Unavailable("the server's memory for requests is in use", "try again later", retry_after=1.0)
        self._memory += size
        context.memory += size

    def end(self, context: RequestContext) -> None:
        """Give back everything that the request holds."""
        context.release_slot()
        self._memory -= context.memory
        context.memory = 0
        if context.counted:
            context.counted = False
            self._clients[context.client] -= 1
            if not self._clients[context.client]:
                del self._clients[context.client]

    def admit_early(self, context: RequestContext) -> Refusal | None:
        """Admit a request whose body has not been read, or return its refusal, counted and logged.

        Requests that run no queued model, and those that are wrong in another way, are left to the HTTP application.
        """
        if context.route.endpoint not in ("infer", "predict"):
            return None
        try:
            self.access.check(context)
            model = self._models.get(context.route.model, context.route.version)
        except ServeError:
            return None
        try:
            self.admit(context)
        except Unavailable as error:
            context.model = context.route.model
            self._observer.on_complete(context, error.http, 0.0)
            body = dump({"error": error.text})
            return Refusal(HEAD.format(len(body), math.ceil(error.retry_after or 1.0)).encode() + body, model.free_slots)
        return None
