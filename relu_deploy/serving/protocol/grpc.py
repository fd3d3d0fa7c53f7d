"""The Open Inference Protocol v2 over gRPC, on the event loop and the models of the HTTP server.

A call is cancelled when its client disconnects or its deadline passes; its request is then not run any more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

from relu_deploy.errors import InputError, ReluDeployError, missing_package
from relu_deploy.serving.errors import InternalError, NotFound, ServeError, Unavailable, serve_error
from relu_deploy.serving.models import VERSION, Models
from relu_deploy.serving.protocol.grpc_codec import decode, fill, parameters_of
from relu_deploy.serving.protocol.grpc_health import HealthService
from relu_deploy.serving.protocol.grpc_messages import RECEIVE_OPTIONS, decompress_message, message_of
from relu_deploy.serving.protocol.grpc_receiving import STREAM_OPTIONS, MessageReceiver
from relu_deploy.serving.protocol.proto import SERVICE, messages
from relu_deploy.serving.protocol.routes import EXTENSIONS, RequestContext, Route
from relu_deploy.serving.protocol.tensors import THREADED_PARSE_BYTES, check_load_parameters
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.serving.transport.connection_surge import ConnectionSurge
from relu_deploy.serving.transport.idle_connections import IdleConnections
from relu_deploy.serving.transport.limits import HttpLimits
from relu_deploy.serving.transport.relay import Relay
from relu_deploy.serving.transport.sockets import descriptor_limit
from relu_deploy.serving.transport.tls import TlsOptions
from relu_deploy.version import __version__

__all__ = ["GrpcServer", "GrpcService"]

#: calls whose access differs from that of inference → their endpoint
_ENDPOINTS = {
    "ServerLive": "server_live",
    "ServerReady": "server_ready",
    "ModelReady": "model_ready",
    "RepositoryModelLoad": "model_load",
    "RepositoryModelUnload": "model_unload",
}

#: seconds without a call before the port is closed, and at most; gRPC drops calls that arrive at that moment
QUIET_SECONDS, QUIET_WITHIN = 0.05, 1.0
#: bytes of an error's text: clients refuse trailing metadata of more than 8 KiB, and each byte may take three
MAX_ERROR_BYTES = 2000

log = logging.getLogger("relu_deploy.serve")
#: takes the message and the request's context
Call = Callable[[Any, RequestContext], Awaitable[Any]]


class GrpcServer:
    """One gRPC port. To be made, started and drained on the event loop that the models are on."""

    def __init__(self, services: Sequence[Any], host: str, port: int, max_body: int, tls: TlsOptions | None = None) -> None:
        """Bind the port.

        Args:
            services: A GrpcService and others with a `handler`.
            host: Address to listen on.
            port: 0 takes a free one.
            max_body: Bytes of one message.
            tls: None for plain TCP.

        Raises:
            InputError: If the port cannot be bound.
        """
        import grpc.aio

        self._services = [service for service in services if isinstance(service, GrpcService)]
        self._watched = [service for service in services if isinstance(service, HealthService)]
        self._receivers = {service.receiver for service in services}
        self._server = grpc.aio.server(handlers=[service.handler() for service in services], options=_options(max_body))
        credentials = None if tls is None else tls.grpc_credentials()
        self.port = self._listen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials)
        # Nobody can guess it, but all users of the machine can see it: what they may do is what they may do at the port.
        name = f"relu-deploy-{secrets.token_hex(16)}"
        self._relay = Relay(name)
        if sys.platform == "linux":
            self._listen(f"unix-abstract:{name}", credentials)
        for service in self._services:
            service.client_of = self._relay.client_of
        self._surge: ConnectionSurge | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _listen(self, address: str, credentials: Any) -> int:
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {address} for gRPC", "choose another port with --grpc-port, 0 for any, -1 for no gRPC"
            ) from error

    async def start(self) -> None:
        """Take calls from now on."""
        await self._server.start()
        idle = IdleConnections(self.port, most_connections(), self._is_calling)
        self._tasks.append(asyncio.create_task(idle.keep_room()))
        try:
            self._surge = ConnectionSurge(self.port, self._relay)
        except OSError as error:
            log.debug("gRPC alone accepts its connections: %s", error.strerror)
        else:
            for each in self._receivers:
                each.on_abandoned = self._surge.count_abandoned

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, and return when the running ones are answered; those that take longer than `seconds` are cancelled."""
        for service in self._services:
            service.closing = True
        until = time.monotonic() + min(QUIET_WITHIN, seconds)
        while time.monotonic() < min(max((each.last_call for each in self._services), default=0.0) + QUIET_SECONDS, until):
            await asyncio.sleep(QUIET_SECONDS / 2)
        for watched in self._watched:
            watched.end_watches()
        if self._surge is not None:
            self._surge.close()
            self._surge = None
        await self._server.stop(seconds)
        for task in self._tasks:
            task.cancel()

    def _is_calling(self, peer: str) -> bool:
        return any(peer in service.calling for service in self._services)


class GrpcService:
    """The calls of the protocol.

    Attributes:
        closing: No more inference requests are taken.
        last_call: When the last call arrived, of time.monotonic().
        calling: How many calls run, by the name of the peer.
        receiver: Waits for the messages.
        client_of: Returns the name of the client behind a peer.
    """

    def __init__(
        self,
        models: Models,
        admission: AdmissionControl,
        observer: RequestObserver,
        ready: Callable[[], bool] = lambda: True,
        max_body: int = 2**26,
        receiver: MessageReceiver | None = None,
    ) -> None:
        """Make the service.

        Args:
            models: What infer runs.
            admission: Gives requests their place in a model's queue.
            observer: Is notified of each call when it has ended.
            ready: Whether the server takes traffic, beside its models.
            max_body: Bytes of a message, once it is decompressed.
            receiver: Waits for the messages, None for one with the default limits.

        Raises:
            BackendUnavailable: If gRPC is not installed.
        """
        try:
            import grpc  # noqa: F401
        except ImportError as error:
            raise missing_package(error.name or "grpcio", "serve") from error
        self._models, self._admission, self._observer, self._ready = models, admission, observer, ready
        self._max_body = max_body
        self.receiver = receiver or MessageReceiver(HttpLimits().body_seconds)
        self._messages = messages()
        self.closing, self.last_call = False, 0.0
        self.calling: Counter[str] = Counter()
        self.client_of: Callable[[str], str] = str

    def handler(self) -> Any:
        """Return the protocol's methods for grpc.aio.server."""
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
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._method(name, call)) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _method(self, name: str, call: Call) -> Callable[[Any, Any], Awaitable[bytes]]:
        """Return `call` with a message of bytes for another, which ends with an error's status instead of raising it."""
        kind = getattr(self._messages, f"{name}Request")

        async def method(_: Any, rpc: Any) -> bytes:
            self.last_call = started = time.monotonic()
            headers, peer = rpc.invocation_metadata() or (), self.client_of(unquote(rpc.peer()))
            context = RequestContext("gRPC", name, _address(peer), headers, timeout=rpc.time_remaining())
            context.route = Route(_ENDPOINTS.get(name, ""))
            status = 0  # as it stays when the client disconnects
            self.calling[peer] += 1
            try:
                self._admission.access.check(context)
                received = await self.receiver.receive(rpc)
                self._admission.hold_memory(context, len(received))
                content = await decompress_message(received, self._max_body)
                if content is not received:
                    self._admission.hold_memory(context, len(content))
                response = await _run(call, kind, content, context)
                status = 200
                return response
            except ServeError as error:
                status = error.http
                return await _abort(rpc, error)
            finally:
                self.calling[peer] -= 1
                if not self.calling[peer]:
                    del self.calling[peer]
                self._admission.end(context)
                self._observer.on_complete(context, status, time.monotonic() - started)

        return method

    async def _server_live(self, _message: Any, _context: RequestContext) -> Any:
        return self._messages.ServerLiveResponse(live=True)

    async def _server_ready(self, _message: Any, _context: RequestContext) -> Any:
        return self._messages.ServerReadyResponse(ready=self._ready() and self._models.all_ready())

    async def _server_metadata(self, _message: Any, _context: RequestContext) -> Any:
        extensions = [each for each in EXTENSIONS if each != "binary_tensor_data"]
        return self._messages.ServerMetadataResponse(name="relu_deploy", version=__version__, extensions=extensions)

    async def _model_ready(self, message: Any, _context: RequestContext) -> Any:
        try:
            self._models.get(message.name, message.version)
        except (Unavailable, NotFound):
            return self._messages.ModelReadyResponse(ready=False)
        return self._messages.ModelReadyResponse(ready=True)

    async def _model_metadata(self, message: Any, _context: RequestContext) -> Any:
        return self._messages.ModelMetadataResponse(**self._models.get(message.name, message.version).metadata())

    async def _model_config(self, message: Any, _context: RequestContext) -> Any:
        config = self._models.get(message.name, message.version).config()
        return self._messages.ModelConfigResponse(config=config)

    async def _model_statistics(self, message: Any, _context: RequestContext) -> Any:
        if message.name:
            model = self._models.get(message.name, message.version)
            return self._messages.ModelStatisticsResponse(model_stats=[model.statistics.to_json(model.name, VERSION)])
        statistics = [each.to_json(name, VERSION) for name, each in self._models.statistics().items()]
        return self._messages.ModelStatisticsResponse(model_stats=statistics)

    async def _infer(self, message: Any, context: RequestContext) -> Any:
        if self.closing:
            raise Unavailable("the server is shutting down", retry_after=1.0)
        context.route = Route("infer", message.model_name, message.model_version)
        self._admission.admit(context)
        model = self._models.get(message.model_name, message.model_version)
        if not message.raw_input_contents and message.ByteSize() > THREADED_PARSE_BYTES:
            inference = await asyncio.to_thread(decode, message, model.inputs, model.settings.allow_nan)
            # The model may have been replaced meanwhile.
            model = self._models.get(message.model_name, message.model_version)
        else:
            inference = decode(message, model.inputs, model.settings.allow_nan)
        outputs = inference.select(model.outputs)
        results = await model.infer(inference, context)
        response = self._messages.ModelInferResponse(model_name=model.name, model_version=VERSION, id=inference.id)
        fill(response, results, outputs)
        return response

    async def _index(self, message: Any, _context: RequestContext) -> Any:
        entries = [each for each in self._models.index() if each["state"] == "READY" or not message.ready]
        return self._messages.RepositoryIndexResponse(models=entries)

    async def _load(self, message: Any, _context: RequestContext) -> Any:
        check_load_parameters(parameters_of(message))
        await self._models.load(message.model_name)
        return self._messages.RepositoryModelLoadResponse()

    async def _unload(self, message: Any, _context: RequestContext) -> Any:
        await self._models.unload(message.model_name)
        return self._messages.RepositoryModelUnloadResponse()


async def _run(call: Call, kind: Any, received: bytes, context: RequestContext) -> bytes:
    """Return the response of `call`, serialized. kind: the class of the received message.

    Raises:
        ServeError: Whatever went wrong.
    """
    try:
        message = message_of(kind, received)
        context.model, context.id = getattr(message, "model_name", ""), getattr(message, "id", "")
        serialized: bytes = (await call(message, context)).SerializeToString()
        return serialized
    except ServeError:
        raise
    except ReluDeployError as error:
        raise serve_error(error) from error
    except Exception as error:
        log.exception("a call failed")
        raise InternalError("the server failed on this request; its log says more") from error


def _address(peer: str) -> str:
    """Return the address in gRPC's name of a peer, such as ipv4:10.0.0.1:50000; "" for one without an address.

    peer: Without percent signs for special characters.
    """
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


async def _abort(rpc: Any, error: ServeError) -> NoReturn:
    from grpc import StatusCode

    text = error.text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")
    retry = () if error.retry_after is None else (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    await rpc.abort(StatusCode[error.grpc], text, retry)
    raise AssertionError("abort has not ended the call")


def most_connections() -> int:
    """Return how many gRPC connections may be open."""
    return max(1, descriptor_limit() // 2)


def _options(max_body: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_body),
        ("grpc.max_send_message_length", -1),
        *RECEIVE_OPTIONS,
        *STREAM_OPTIONS,
        # A client that connects and sends nothing holds a file descriptor, and the other ports need some as well.
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        # ConnectionSurge shares the port. `reserved` keeps other processes away: they must not share it without knowing.
        ("grpc.so_reuseport", int(sys.platform == "linux")),
        # A client that vanished is noticed; clients may ping every 10 s, also between calls.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
