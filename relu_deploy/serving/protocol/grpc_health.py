"""The gRPC health checking protocol (grpc.health.v1), which Kubernetes, Envoy and load balancers probe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from relu_deploy.serving.errors import NotFound, ServeError, Unavailable
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.proto import SERVICE, messages

__all__ = ["HealthService"]

#: seconds between two checks of a status that is watched
WATCH_INTERVAL = 1.0


class HealthService:
    """The status of the server ("" and the name of the inference service) and of each model (its name)."""

    def __init__(self, models: Models, ready: Callable[[], bool]) -> None:
        """ready: whether the server takes traffic, beside its models."""
        self._models, self._ready, self._messages = models, ready, messages("health")

    def handler(self) -> Any:
        """Return the protocol's methods for grpc.aio.server."""
        import grpc

        request, response = self._messages.HealthCheckRequest, self._messages.HealthCheckResponse
        serialize = {"request_deserializer": request.FromString, "response_serializer": response.SerializeToString}
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **serialize),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **serialize),
        }
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)

    async def _check(self, request: Any, rpc: Any) -> Any:
        status = self._status(request.service)
        if status == "SERVICE_UNKNOWN":
            from grpc import StatusCode

            await rpc.abort(StatusCode.NOT_FOUND, f"there is no service called {request.service[:80]!r}")
        return self._messages.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, _rpc: Any) -> AsyncIterator[Any]:
        last = ""
        while True:
            if (status := self._status(request.service)) != last:
                last = status
                yield self._messages.HealthCheckResponse(status=status)
            await asyncio.sleep(WATCH_INTERVAL)

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
