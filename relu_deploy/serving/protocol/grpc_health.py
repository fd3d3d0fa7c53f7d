"""The gRPC health checking protocol (grpc.health.v1), which Kubernetes, Envoy and load balancers probe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from relu_deploy.serving.errors import NotFound, ServeError, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.grpc_messages import parse_message
from relu_deploy.serving.protocol.grpc_receiving import MessageReceiver
from relu_deploy.serving.protocol.proto import SERVICE, messages
from relu_deploy.serving.transport.limits import HttpLimits

__all__ = ["HealthService"]

#: seconds between two checks of a status that is watched
WATCH_INTERVAL = 1.0
#: bytes of a message, once it is decompressed
MAX_MESSAGE = 2**16
#: clients that watch a status at a time: beyond, the watch that began first is ended, and its client begins another
MOST_WATCHES = 1000


class HealthService:
    """The status of the server ("" and the name of the inference service) and of each model (its name).

    Attributes:
        receiver: Waits for the messages.
    """

    def __init__(self, models: Models, ready: Callable[[], bool], receiver: MessageReceiver | None = None) -> None:
        """ready: whether the server takes traffic, beside its models. receiver: waits for the messages."""
        self._models, self._ready, self._messages = models, ready, messages("health")
        self.receiver = receiver or MessageReceiver(HttpLimits().body_seconds)
        #: what ends each watch, the oldest first
        self._watches: dict[asyncio.Event, None] = {}
        self._ending = False

    def handler(self) -> Any:
        """Return the protocol's methods for grpc.aio.server."""
        import grpc

        serializer = self._messages.HealthCheckResponse.SerializeToString
        handlers = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, response_serializer=serializer),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=serializer),
        }
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)

    def end_watches(self) -> None:
        """End the calls of clients that watch a status: they would end with their client only, and the server waits for them."""
        self._ending = True
        for ended in self._watches:
            ended.set()

    async def _check(self, _: Any, rpc: Any) -> Any:
        from grpc import StatusCode

        service = await self._service(rpc)
        status = self._status(service)
        if status == "SERVICE_UNKNOWN":
            await rpc.abort(StatusCode.NOT_FOUND, f"there is no service called {service[:80]!r}")
        return self._messages.HealthCheckResponse(status=status)

    async def _watch(self, _: Any, rpc: Any) -> AsyncIterator[Any]:
        service, last, ended = await self._service(rpc), "", asyncio.Event()
        self._watches[ended] = None
        if len(self._watches) > MOST_WATCHES:
            next(iter(self._watches)).set()
        try:
            while True:
                if (status := self._status(service)) != last:
                    last = status
                    yield self._messages.HealthCheckResponse(status=status)
                if ended.is_set() or self._ending:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), WATCH_INTERVAL)
        finally:
            del self._watches[ended]

    async def _service(self, rpc: Any) -> str:
        """Return the service that a call names; no message, or a message that is not one of the protocol ends the call."""
        try:
            received = await self.receiver.receive(rpc)
            return str((await parse_message(self._messages.HealthCheckRequest, received, MAX_MESSAGE)).service)
        except ServeError as error:
            from grpc import StatusCode

            await rpc.abort(StatusCode[error.grpc], error.text)
            raise

    def _status(self, service: str) -> str:
        if service in ("", SERVICE):
            return "SERVING" if self._ready() and self._models.all_ready() else "NOT_SERVING"
        try:
            self._models.get(service)
        except (Unavailable, NotFound) as error:
            return _status_of(error)
        return "SERVING" if self._ready() else "NOT_SERVING"


def _status_of(error: ServeError) -> str:
    return "SERVICE_UNKNOWN" if isinstance(error, NotFound) else "NOT_SERVING"
