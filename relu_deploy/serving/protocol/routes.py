"""The router: which endpoint a method and path name, parsed once, and the context that a request carries from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.serving.batcher import Slot
from relu_deploy.serving.telemetry.statistics import Timings

__all__ = ["CONTEXT", "EXTENSIONS", "INFERENCE", "RequestContext", "Route", "parse_route"]

#: the extension of an ASGI scope that holds the request's `RequestContext`
CONTEXT = "relu_deploy.context"
#: extensions of the protocol, as the server's metadata lists them
EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")
#: endpoints that run a model
INFERENCE = ("infer", "predict", "relus")


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        endpoint: Its name, for instance "infer" or "model_metadata"; "" when there is none.
        model: The model's name, "" where the endpoint has none.
        version: The model's version, "" where the path names none.
        template: The path with placeholders for the model and its version.
    """

    endpoint: str
    model: str = ""
    version: str = ""
    template: str = ""


@dataclass(slots=True, eq=False)
class RequestContext:
    """What is known of one request, over HTTP or gRPC. Every layer that handles the request reads and completes it.

    Attributes:
        method: HTTP's method, "gRPC" for every gRPC call.
        path: The decoded path of the URL, or the name of the gRPC call.
        client: The client's address, "" where it is not known.
        headers: HTTP headers (bytes, lower-case names) or gRPC metadata (text), in the order received.
        route: The endpoint.
        cancel_on_disconnect: Called with a future that is to be cancelled when the client disconnects.
        timeout: Seconds that the client waits for an answer, None for no limit.
        http_version: For instance "1.1"; "" for gRPC.
        body_complete: Whether all of the body was read.
        authorized: Whether access was granted.
        memory: Bytes of the server's memory for requests that this one holds.
        counted: Whether it counts among its client's requests in progress.
        slot: The place in the model's queue that was reserved for the request.
        model: The model that the request runs, "" until it is known.
        id: The identifier that the client gave the request.
        timings: Where the time of an inference went.
        trace_id: The identifier of the request's trace, "" where it is not traced.
    """

    method: str
    path: str
    client: str = ""
    headers: Sequence[tuple[Any, Any]] = ()
    route: Route = field(default_factory=lambda: Route(""))
    cancel_on_disconnect: Callable[[asyncio.Future[Any]], None] = lambda _: None
    timeout: float | None = None
    http_version: str = ""
    body_complete: bool = False
    authorized: bool = False
    memory: int = 0
    counted: bool = False
    slot: Slot | None = None
    model: str = ""
    id: str = ""
    timings: Timings | None = None
    trace_id: str = ""

    def release_slot(self) -> None:
        """Give back the reserved place in the queue, if the request still holds one."""
        if self.slot is not None:
            self.slot.release()
            self.slot = None

    def release_unless_complete(self) -> None:
        """Give back the reserved place while the body is still on its way: a slow client must not hold a place."""
        if not self.body_complete:
            self.release_slot()


def parse_route(method: str, path: str) -> Route:
    """Return the endpoint at the decoded URL path `path`. HEAD is answered wherever GET is."""
    parts = path.strip("/").split("/")
    version, template = "", "/v2/models/{model}"
    if parts[:2] == ["v2", "models"] and len(parts) >= 5 and parts[3] == "versions":
        version, parts, template = parts[4], [*parts[:3], *parts[5:]], "/v2/models/{model}/versions/{version}"
    match ["GET" if method == "HEAD" else method, *parts]:
        case ["POST", "v2", "models", model, "infer" | "predict" | "relus" as endpoint]:
            return Route(endpoint, model, version, f"{template}/{endpoint}")
        case ["GET", "v2", "health", "live" | "ready" as endpoint]:
            return Route(f"server_{endpoint}", template=f"/v2/health/{endpoint}")
        case ["GET", "v2"]:
            return Route("server_metadata", template="/v2")
        case ["GET", "v2", "models", "stats"] if not version:
            return Route("server_statistics", template="/v2/models/stats")
        case ["GET", "v2", "models", model]:
            return Route("model_metadata", model, version, template)
        case ["GET", "v2", "models", model, "ready" | "config" | "stats" | "monitor" as endpoint]:
            return Route(f"model_{endpoint}", model, version, f"{template}/{endpoint}")
        case ["POST", "v2", "repository", "index"]:
            return Route("repository_index", template="/v2/repository/index")
        case ["POST", "v2", "repository", "models", model, "load" | "unload" as endpoint]:
            return Route(f"model_{endpoint}", model, template=f"/v2/repository/models/{{model}}/{endpoint}")
        case ["GET", ""]:
            return Route("page", template="/")
        case ["GET", "page", "models"]:
            return Route("page_models", template="/page/models")
    return Route("")
