"""The gRPC health checking protocol (grpc.health.v1), which Kubernetes, Envoy and load balancers probe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from relu_deploy.serving.errors import NotFound, ServeError, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.grpc_messages import parse_message
from relu_deploy.serving.protocol.proto import SERVICE, messages

__all__ = ["HealthService"]

#: seconds between two checks of a status that is watched
WATCH_INTERVAL = 1.0
#: bytes of a message, once it is decompressed
MAX_MESSAGE = 2**16


class HealthService:
    """The status of the server ("" and the name of the inference service) and of each model (its name)."""

    def __init__(self, models: Models, ready: Callable[[], bool]) -> None:
        """ready: whether the server takes traffic, beside its models."""
        self._models, self._ready, self._messages = models, ready, messages("health")
        self._ending = asyncio.Event()

    def handler(self) -> Any:
        """Return the protocol's methods for grpc.aio.server."""
        import grpc

        serializer = self._messages.HealthCheckResponse.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, response_serializer=serializer),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, response_serializer=serializer),
        }
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)

    def end_watches(self) -> None:
        """End the calls of clients that watch a status: they would end with their client only, and the server waits for them."""
        self._ending.set()

    async def _check(self, received: bytes, rpc: Any) -> Any:
        from grpc import StatusCode

        service = await self._service(received, rpc)
        status = self._status(service)
        if status == "SERVICE_UNKNOWN":
            await rpc.abort(StatusCode.NOT_FOUND, f"there is no service called {service[:80]!r}")
        return self._messages.HealthCheckResponse(status=status)

    async def _watch(self, received: bytes, rpc: Any) -> AsyncIterator[Any]:
        service, last = await self._service(received, rpc), ""
        while True:
            if (status := self._status(service)) != last:
                last = status
                yield self._messages.HealthCheckResponse(status=status)
            if self._ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), WATCH_INTERVAL)

    async def _service(self, received: bytes, rpc: Any) -> str:
        """Return the service that a call names; a message that is not one of the protocol ends the call."""
        try:
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
