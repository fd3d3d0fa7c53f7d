"""The Open Inference Protocol v2 over gRPC, on the event loop and the models that HTTP is answered from.

A call is cancelled when its client leaves or its deadline passes: what it asked for is then not run any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn
from urllib.parse import unquote

from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.serving.errors import InternalError, InvalidArgument, NotFound, ServeError, Unavailable
from relu_deploy.serving.models import VERSION, Models
from relu_deploy.serving.protocol.grpc_codec import decode, fill, parameters_of
from relu_deploy.serving.protocol.http import EXTENSIONS, PARSED_ASIDE
from relu_deploy.serving.protocol.json_codec import check_load
from relu_deploy.serving.protocol.proto import stubs
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.telemetry.request_log import Access
from relu_deploy.version import __version__

__all__ = ["GrpcServer", "GrpcService"]

#: seconds without a call that are waited for before the port is closed, and at most; gRPC drops what has just arrived then
CALM, CALM_WITHIN = 0.05, 1.0
#: bytes of an error's text: trailing metadata of more than 8 KiB is refused by clients, and each byte may take three
TOLD_BYTES = 2000

log = logging.getLogger("relu_deploy.serve")
#: takes the message, gRPC's context, and what gets noted for the log
Call = Callable[[Any, Any, dict[str, Any]], Awaitable[Any]]


class GrpcServer:
    """One gRPC port. To be made, started and drained on the event loop that the models are on."""

    def __init__(self, service: GrpcService, host: str, port: int, max_body: int) -> None:
        """port: 0 takes a free one. max_body: bytes of one message. Raises InputError when the port cannot be had."""
        import grpc.aio

        self._service = service
        self._server = grpc.aio.server(handlers=[service.handler()], options=_options(max_body))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {address} for gRPC", "choose another port with --grpc-port, 0 for any, -1 for no gRPC"
            ) from error

    async def start(self) -> None:
        """Take calls from now on."""
        await self._server.start()

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, and return when those that run are answered; what takes longer than `seconds` is cancelled."""
        self._service.closing = True
        until = time.monotonic() + min(CALM_WITHIN, seconds)
        while time.monotonic() < min(self._service.last_call + CALM, until):
            await asyncio.sleep(CALM / 2)
        await self._server.stop(seconds)


class GrpcService:
    """The calls of the protocol. ready: whether traffic should come. closing: no more of it is taken. access: is told of them."""

    def __init__(self, models: Models, ready: Callable[[], bool] = lambda: True, access: RequestObserver | None = None) -> None:
        """Raises what `stubs` raises."""
        self._access = access or Access()
        self._models, self._ready = models, ready
        self._told, _ = stubs()
        self.closing, self.last_call = False, 0.0

    def handler(self) -> Any:
        """Return what grpc.aio.server asks for the protocol's methods, each of which turns errors into the call's status."""
        import grpc

        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._with_status(call, getattr(self._told, f"{name}Request")))
            for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)

    def _with_status(self, call: Call, kind: Any) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Return `call` from bytes to bytes, which ends with the status of an error instead of raising it. kind: of message."""

        async def answered(received: bytes, context: Any) -> bytes:
            self.last_call = started = time.monotonic()
            fields: dict[str, Any] = {"method": "gRPC", "path": kind.DESCRIPTOR.name.removesuffix("InferRequest")}
            fields |= {"client": _address(context.peer()), "headers": context.invocation_metadata() or ()}
            status = 0  # as it stays when the client leaves
            try:
                answer = await _called(call, kind, received, context, fields)
                status = 200
                return answer
            except ServeError as refused:
                status = refused.http
                return await _abort(context, refused)
            finally:
                self._access.tell(fields, status, time.monotonic() - started)

        return answered

    async def _server_live(self, _request: Any, *_: Any) -> Any:
        return self._told.ServerLiveResponse(live=True)

    async def _server_ready(self, _request: Any, *_: Any) -> Any:
        return self._told.ServerReadyResponse(ready=self._ready() and self._models.all_ready())

    async def _server_metadata(self, _request: Any, *_: Any) -> Any:
        extensions = [one for one in EXTENSIONS if one != "binary_tensor_data"]
        return self._told.ServerMetadataResponse(name="relu_deploy", version=__version__, extensions=extensions)

    async def _model_ready(self, request: Any, *_: Any) -> Any:
        try:
            self._models.get(request.name, request.version)
        except (Unavailable, NotFound):
            return self._told.ModelReadyResponse(ready=False)
        return self._told.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: Any, *_: Any) -> Any:
        return self._told.ModelMetadataResponse(**self._models.get(request.name, request.version).metadata())

    async def _model_config(self, request: Any, *_: Any) -> Any:
        config = self._models.get(request.name, request.version).config()
        return self._told.ModelConfigResponse(config=config)

    async def _model_statistics(self, request: Any, *_: Any) -> Any:
        if request.name:
            model = self._models.get(request.name, request.version)
            return self._told.ModelStatisticsResponse(model_stats=[model.statistics.to_json(model.name, VERSION)])
        every = [each.to_json(name, VERSION) for name, each in self._models.statistics().items()]
        return self._told.ModelStatisticsResponse(model_stats=every)

    async def _infer(self, request: Any, context: Any, noted: dict[str, Any]) -> Any:
        if self.closing:
            raise Unavailable("the server is going down", retry_after=1.0)
        model = self._models.get(request.model_name, request.model_version)
        if not request.raw_input_contents and request.ByteSize() > PARSED_ASIDE:
            asked = await asyncio.to_thread(decode, request, model.inputs, model.settings.allow_nan)
            # That took its time: by now the model may be a newer one.
            model = self._models.get(request.model_name, request.model_version)
        else:
            asked = decode(request, model.inputs, model.settings.allow_nan)
        wanted = asked.wanted(model.outputs)
        results, noted["timings"] = await model.timed(asked, within=context.time_remaining())
        answer = self._told.ModelInferResponse(model_name=model.name, model_version=VERSION, id=asked.id)
        fill(answer, results, wanted)
        return answer

    async def _index(self, request: Any, *_: Any) -> Any:
        entries = [one for one in self._models.index() if one["state"] == "READY" or not request.ready]
        return self._told.RepositoryIndexResponse(models=entries)

    async def _load(self, request: Any, *_: Any) -> Any:
        check_load(parameters_of(request))
        await self._models.load(request.model_name)
        return self._told.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, *_: Any) -> Any:
        await self._models.unload(request.model_name)
        return self._told.RepositoryModelUnloadResponse()


async def _called(call: Call, kind: Any, received: bytes, context: Any, fields: dict[str, Any]) -> bytes:
    """Return the answer of `call`, serialized. fields: gets what the log may tell. Raises ServeError, whatever went wrong."""
    from google.protobuf.message import DecodeError

    try:
        message = kind.FromString(received)
        fields |= {"model": getattr(message, "model_name", ""), "id": getattr(message, "id", "")}
        serialized: bytes = (await call(message, context, fields)).SerializeToString()
        return serialized
    except DecodeError:
        # Here and not in gRPC, which would call it an unknown error and log a traceback.
        raise InvalidArgument(f"the message is no {kind.DESCRIPTOR.name}") from None
    except ServeError:
        raise
    except ReluDeployError as error:
        raise InvalidArgument(error.message, error.hint) from error
    except Exception as error:
        log.exception("a call failed")
        raise InternalError("the server failed on this request; its log says more") from error


def _address(peer: str) -> str:
    """Return the address in what gRPC calls its peer, such as ipv4:10.0.0.1:50000; "" for one that is none."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


async def _abort(context: Any, error: ServeError) -> NoReturn:
    from grpc import StatusCode

    told = error.told.encode()[:TOLD_BYTES].decode(errors="ignore")
    again = () if error.retry_after is None else (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    await context.abort(StatusCode[error.grpc], told, again)
    raise AssertionError("abort has not ended the call")


def _options(max_body: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_body),
        ("grpc.max_send_message_length", -1),
        # Two processes must not share a port without knowing.
        ("grpc.so_reuseport", 0),
        # Whoever is gone without a word is noticed; clients may ask every 10 s, also between calls.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
