"""The Open Inference Protocol v2 over HTTP, as an ASGI application, and its infer request from body to answer.

Bodies are bounded, in size and in the time that they may take, and read into one buffer that the arrays then share.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from relu_deploy.errors import ReluDeployError
from relu_deploy.serving.errors import InternalError, InvalidArgument, NotFound, ServeError, TooLarge, serve_error
from relu_deploy.serving.models import VERSION, Models
from relu_deploy.serving.protocol.compression import BODY_HINT, decompress, decompressed_limit
from relu_deploy.serving.protocol.json_codec import decode, dump, encode, memory_of
from relu_deploy.serving.protocol.routes import CONTEXT, RequestContext, parse_route
from relu_deploy.serving.protocol.tensors import THREADED_PARSE_BYTES
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.serving.transport.limits import HttpLimits

__all__ = ["Handler", "HttpApp", "Request", "Response", "json_response"]

#: pieces of a body that are held before they are joined
MOST_PIECES = 1024

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        context: Its route, and what other layers know of it.
        headers: By lower-case name.
        query: The URL's query, as received.
        body: Reads the body, within the limits.
    """

    context: RequestContext
    headers: Mapping[str, str]
    query: str
    body: Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Response:
    """One HTTP response. parts: the body, in pieces that are sent without being joined."""

    parts: Sequence[bytes] = ()
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


#: answers the requests of one endpoint
Handler = Callable[[Request], Awaitable[Response]]


class HttpApp:
    """The ASGI application of the inference port."""

    def __init__(
        self,
        models: Models,
        admission: AdmissionControl,
        observer: RequestObserver,
        handlers: Mapping[str, Handler],
        limits: HttpLimits,
    ) -> None:
        """Make the application.

        Args:
            models: What infer runs.
            admission: Gives requests their place in a model's queue.
            observer: Is notified of each request when it has ended.
            handlers: By `Route.endpoint`, all but infer.
            limits: Of the bodies.
        """
        self._models, self._admission, self._observer, self._limits = models, admission, observer, limits
        self._handlers = {**handlers, "infer": self._infer}
        # A parser holds Python's lock: several long bodies at once would keep the event loop from it several times as long.
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0
        context = _context_of(scope)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reader = _BodyReader(receive, headers, self._limits, partial(self._admission.hold_memory, context))
        request = Request(context, headers, scope["query_string"].decode("latin-1"), reader.read)
        try:
            response = await self._respond(request)
            status = response.status
            context.body_complete = reader.done
            headers_added = self._admission.access.response_headers(context)
            await _send(send, response, headers_added, close=not reader.done)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # The client has disconnected: an answer would not be read.
        finally:
            self._admission.end(context)
            self._observer.on_complete(context, status, time.perf_counter() - started)

    async def _respond(self, request: Request) -> Response:
        """Return the response, which is an error's where the request failed."""
        context = request.context
        try:
            self._admission.access.check(context)
            if request.headers.get("expect", "100-continue").lower() != "100-continue":
                return Response([dump({"error": "the only supported expectation is 100-continue"})], 417)
            context.timeout = _timeout(request.headers)
            if context.method == "OPTIONS":
                return _options(context.path)
            if (handler := self._handlers.get(context.route.endpoint)) is None:
                raise NotFound(f"there is nothing at {context.method} {context.path}")
            return await handler(request)
        except ReluDeployError as error:
            return _error_response(serve_error(error))
        except Exception:
            log.exception("a request failed")
            return _error_response(InternalError("the server failed on this request; its log says more"))

    async def _infer(self, request: Request) -> Response:
        context = request.context
        name, version = context.route.model, context.route.version
        self._models.get(name, version)  # an unknown model is refused before the body is read
        body = await request.body()
        context.body_complete = True
        self._admission.admit(context)
        length = _json_length(request.headers)
        in_thread = (length if length is not None else len(body)) > THREADED_PARSE_BYTES
        if in_thread:
            async with self._parsing:
                self._admission.hold_memory(context, await asyncio.to_thread(memory_of, body, length))
                model = self._models.get(name, version)
                inference = await asyncio.to_thread(decode, body, length, model.inputs, model.settings.allow_nan)
            # The model may have been replaced meanwhile.
            model = self._models.get(name, version)
        else:
            self._admission.hold_memory(context, memory_of(body, length))
            model = self._models.get(name, version)
            inference = decode(body, length, model.inputs, model.settings.allow_nan)
        outputs = inference.select(model.outputs)
        context.model, context.id = name, inference.id
        results = await model.infer(inference, context)
        fields = {"model_name": name, "model_version": VERSION, **({"id": inference.id} if inference.id else {})}
        parts, length = encode(fields, results, outputs)
        if length is None:
            return Response(parts)
        return Response(parts, content_type="application/octet-stream", headers={"inference-header-content-length": str(length)})


class _BodyReader:
    """Reads one body. done: whether all of it was read, without which the connection cannot be used again."""

    def __init__(self, receive: Any, headers: Mapping[str, str], limits: HttpLimits, hold: Callable[[int], None]) -> None:
        """hold: counts bytes of memory, or raises Unavailable."""
        self._receive, self._headers, self._limits, self._hold = receive, headers, limits, hold
        self.done = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def read(self) -> bytes:
        """Return the body, decompressed.

        Raises:
            TooLarge: Beyond the limit, as soon as that is known.
            InvalidArgument: For an unknown content encoding, or a body that does not arrive in time.
        """
        length, limit = self._headers.get("content-length"), self._limits.max_body
        if length is not None and length.isdecimal() and int(length) > limit:
            raise TooLarge(f"a body of {length} bytes exceeds the limit of {limit}", BODY_HINT)
        encoding = self._headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise InvalidArgument(f"content encoding {encoding!r} is not supported", "send the body as identity, gzip or deflate")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._receive_all()
        except TimeoutError:
            raise InvalidArgument(f"the body did not arrive within {self._limits.body_seconds:g} s") from None
        if encoding == "identity":
            return body
        content = await asyncio.to_thread(decompress, body, decompressed_limit(body, limit))
        self._hold(len(content))
        return content

    async def _receive_all(self) -> bytes:
        joined: list[bytes] = []
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidArgument("the client disconnected before its body was complete")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            self._hold(len(pieces[-1]))
            if size > self._limits.max_body:
                raise TooLarge(f"the body exceeds the limit of {self._limits.max_body} bytes", BODY_HINT)
            if not message.get("more_body", False):
                self.done = True
                return pieces[0] if len(pieces) == 1 and not joined else b"".join([*joined, *pieces])
            if len(pieces) == MOST_PIECES:
                # A piece of one byte takes the memory of forty.
                joined.append(b"".join(pieces))
                pieces = []


def _context_of(scope: Mapping[str, Any]) -> RequestContext:
    """Return the context that `Connection` made, or a new one below another ASGI server."""
    context = scope.get("extensions", {}).get(CONTEXT)
    if isinstance(context, RequestContext):
        return context
    client = scope.get("client")
    route = parse_route(scope["method"], scope["path"])
    address, version = client[0] if client else "", scope.get("http_version", "1.0")
    return RequestContext(scope["method"], scope["path"], address, scope["headers"], route, http_version=version)


def _timeout(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in the header Request-Timeout, None without it."""
    text = headers.get("request-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise InvalidArgument(f"Request-Timeout is {text[:40]!r}, and must be a number of seconds")
    return seconds


def _options(path: str) -> Response:
    methods = [method for method in ("GET", "POST") if parse_route(method, path).endpoint]
    if not methods:
        raise NotFound(f"there is nothing at OPTIONS {path}")
    if "GET" in methods:
        methods.append("HEAD")
    return Response(status=204, headers={"allow": ", ".join([*methods, "OPTIONS"])})


def _json_length(headers: Mapping[str, str]) -> int | None:
    length = headers.get("inference-header-content-length")
    if length is None:
        return None
    if not length.isdecimal() or len(length) > 12:
        raise InvalidArgument(f"Inference-Header-Content-Length is {length[:40]!r}, and must be a number of bytes")
    return int(length)


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response that is `content` as JSON."""
    return Response([dump(content)], status)


def _error_response(error: ServeError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return Response([dump({"error": error.text})], error.http, headers=headers)


async def _send(send: Any, response: Response, added: Sequence[tuple[bytes, bytes]], *, close: bool) -> None:
    headers = [
        *added,
        (b"content-type", response.content_type.encode()),
        (b"content-length", str(sum(map(len, response.parts))).encode()),
        *((name.encode(), value.encode()) for name, value in response.headers.items()),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if sum(map(len, response.parts)) < 2**16:
        await send({"type": "http.response.body", "body": b"".join(response.parts)})
        return
    for part in response.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
