"""The Open Inference Protocol v2 over HTTP, as an ASGI application: one request can be followed from top to bottom here.

Bodies are bounded, in size and in the time they may take, and read into one buffer that the arrays then share.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.errors import ReluDeployError
from relu_deploy.serving.errors import InternalError, InvalidArgument, NotFound, ServeError, TooLarge, Unavailable
from relu_deploy.serving.models import VERSION, Models
from relu_deploy.serving.protocol.json_codec import check_load, decode, dump, encode, parse
from relu_deploy.version import __version__

__all__ = ["HttpApp", "HttpLimits", "Request", "Response", "Route"]

EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration", "statistics"]
#: a JSON body above this many bytes is parsed in a thread, so that other requests go on meanwhile
PARSED_ASIDE = 2**20
#: what may be done about a body that is too large
LARGER = "send less, or let serve --max-body take more MiB"

#: the extension of an ASGI scope that takes a future to cancel when the client goes; `connection` offers it
ON_DISCONNECT = "relu_deploy.leaving"

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class HttpLimits:
    """max_body: bytes. body_seconds: how long a whole body may take to arrive."""

    max_body: int = 64 * 2**20
    body_seconds: float = 30.0


@dataclass(frozen=True)
class Request:
    """One HTTP request. headers: by lower-case name. body: reads it, within the limits. leaving: see `Model.infer`.

    noted: what the log may tell of it.
    """

    method: str
    parts: tuple[str, ...]
    headers: Mapping[str, str]
    query: str
    body: Callable[[], Awaitable[bytes]]
    on_disconnect: Callable[[asyncio.Future[Any]], None]
    noted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """What is sent back. parts: the body, in pieces that are not joined."""

    parts: Sequence[bytes] = ()
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


#: answers paths that the protocol does not know (the page, pictures, metrics), None for one that it does not know either
Route = Callable[[Request], Awaitable[Response | None]]


class HttpApp:
    """The application. routes: asked in turn for every path that is not the protocol's. ready: whether traffic should come."""

    def __init__(
        self,
        models: Models,
        limits: HttpLimits = HttpLimits(),
        routes: Sequence[Route] = (),
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._models, self._limits, self._routes, self._ready = models, limits, routes, ready

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reader = _Reader(receive, headers, self._limits)
        parts = tuple(scope["path"].strip("/").split("/"))
        on_disconnect = scope.get("extensions", {}).get(ON_DISCONNECT, _stays)
        query, noted = scope["query_string"].decode("latin-1"), scope.get("noted", {})
        ask = Request(scope["method"], parts, headers, query, reader.read, on_disconnect, noted)
        try:
            answer = await self._answer(ask)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # The client has gone: nobody reads an answer.
            return
        except ServeError as error:
            answer = _refused(error)
        except ReluDeployError as error:
            answer = _refused(InvalidArgument(error.message, error.hint))
        except Exception:
            log.exception("a request failed")
            answer = _refused(InternalError("the server failed on this request; its log says more"))
        await _send(send, answer, closes=not reader.done)

    async def _answer(self, ask: Request) -> Response:
        match (ask.method, *ask.parts):
            case ("POST", "v2", "models", name, "infer"):
                return await self._infer(ask, name)
            case ("POST", "v2", "models", name, "versions", version, "infer"):
                return await self._infer(ask, name, version)
            case ("GET", "v2", "health", "live"):
                return _json({"live": True})
            case ("GET", "v2", "health", "ready"):
                ready = self._ready() and self._models.all_ready()
                return _json({"live": True, "ready": ready}, 200 if ready else 503)
            case ("GET", "v2"):
                return _json({"name": "relu_deploy", "version": __version__, "extensions": EXTENSIONS})
            case ("GET", "v2", "models", "stats"):
                return _json({"model_stats": [each.to_json(name, VERSION) for name, each in self._models.statistics().items()]})
            case ("GET", "v2", "models", name, *rest):
                return await self._about(name, rest)
            case ("POST", "v2", "repository", *rest):
                return await self._repository(ask, rest)
        for route in self._routes:
            if (answer := await route(ask)) is not None:
                return answer
        raise NotFound(f"there is nothing at {ask.method} /{'/'.join(ask.parts)}")

    async def _infer(self, ask: Request, name: str, version: str = "") -> Response:
        model = self._models.get(name, version)
        body = await ask.body()
        model.check_room()
        length, allow_nan = _json_length(ask.headers), model.settings.allow_nan
        if (length if length is not None else len(body)) > PARSED_ASIDE:
            request = await asyncio.to_thread(decode, body, length, model.inputs, allow_nan)
        else:
            request = decode(body, length, model.inputs, allow_nan)
        # The body took its time: by now the model may be a newer one.
        model = self._models.get(name, version)
        wanted = request.wanted(model.outputs)
        ask.noted.update(model=name, id=request.id)
        results, ask.noted["timings"] = await model.timed(request, ask.on_disconnect)
        told = {"model_name": name, "model_version": VERSION, "id": request.id}
        if not request.id:
            del told["id"]
        parts, length = encode(told, results, wanted)
        if length is None:
            return Response(parts)
        return Response(parts, content_type="application/octet-stream", headers={"inference-header-content-length": str(length)})

    async def _about(self, name: str, rest: Sequence[str]) -> Response:
        version = ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        if rest == ["ready"]:
            try:
                self._models.get(name, version)
            except Unavailable:
                return _json({"name": name, "ready": False}, 503)
            return _json({"name": name, "ready": True})
        model = self._models.get(name, version)
        match rest:
            case []:
                return _json(model.metadata())
            case ["config"]:
                return _json(model.config())
            case ["monitor"] if model.watch is not None:
                return _json(await asyncio.to_thread(model.watch.to_json))
            case ["stats"]:
                return _json({"model_stats": [model.statistics.to_json(name, VERSION)]})
        raise NotFound(f"there is nothing at /v2/models/{name}/{'/'.join(rest)}")

    async def _repository(self, ask: Request, rest: Sequence[str]) -> Response:
        told = parse(await ask.body())
        match rest:
            case ["index"]:
                entries = self._models.index()
                return _json([one for one in entries if one["state"] == "READY"] if told.get("ready") else entries)
            case ["models", name, "load"]:
                check_load(told.get("parameters") or {})
                await self._models.load(name)
                return _json({})
            case ["models", name, "unload"]:
                await self._models.unload(name)
                return _json({})
        raise NotFound(f"there is nothing at /v2/repository/{'/'.join(rest)}")


class _Reader:
    """Reads one body. done: whether all of it was read, without which the connection cannot be used again."""

    def __init__(self, receive: Any, headers: Mapping[str, str], limits: HttpLimits) -> None:
        self._receive, self._headers, self._limits = receive, headers, limits
        self.done = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def read(self) -> bytes:
        """Return the body. Raises TooLarge beyond the limit, as soon as that is known, and Late when it does not arrive."""
        told = self._headers.get("content-length")
        if told is not None and told.isdecimal() and int(told) > self._limits.max_body:
            raise TooLarge(f"a body of {told} bytes is more than the {self._limits.max_body} that are taken", LARGER)
        encoding = self._headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise InvalidArgument(
                f"a body in content encoding {encoding!r} is not taken", "send it as it is, in gzip or in deflate"
            )
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._whole()
        except TimeoutError:
            raise InvalidArgument(f"the body did not arrive within {self._limits.body_seconds:g} s") from None
        return body if encoding == "identity" else await asyncio.to_thread(_unpacked, body, self._limits.max_body)

    async def _whole(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidArgument("the client left before its body was complete")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._limits.max_body:
                raise TooLarge(f"the body is more than the {self._limits.max_body} bytes that are taken", LARGER)
            if not message.get("more_body", False):
                self.done = True
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _stays(_: asyncio.Future[Any]) -> None:
    """What a server without that extension is taken to say: the client stays."""


def _unpacked(body: bytes, most: int) -> bytes:
    """Return what the compressed `body` holds, without ever holding more than `most`. Raises TooLarge, or Invalid."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header, gzip's or zlib's
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidArgument(f"the body is not what its content encoding says: {error}") from None
    if len(found) > most:
        raise TooLarge(f"the unpacked body is more than the {most} bytes that are taken", LARGER)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidArgument("the compressed body ends too early or too late")
    return found


def _json_length(headers: Mapping[str, str]) -> int | None:
    told = headers.get("inference-header-content-length")
    if told is None:
        return None
    if not told.isdecimal() or len(told) > 12:
        raise InvalidArgument(f"Inference-Header-Content-Length is {told[:40]!r}, and must be a number of bytes")
    return int(told)


def _json(told: Any, status: int = 200) -> Response:
    return Response([dump(told)], status)


def _refused(error: ServeError) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return Response([dump({"error": error.told})], error.http, headers=headers)


async def _send(send: Any, answer: Response, *, closes: bool) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(sum(map(len, answer.parts))).encode()),
        *((name.encode(), value.encode()) for name, value in answer.headers.items()),
    ]
    if closes:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if sum(map(len, answer.parts)) < 2**16:
        await send({"type": "http.response.body", "body": b"".join(answer.parts)})
        return
    for part in answer.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
