"""The server process: binds its ports, loads its models, serves until a signal, and then finishes the accepted requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from relu_deploy.errors import UsageError, missing_package
from relu_deploy.serving.garbage_collection import collect_garbage
from relu_deploy.serving.heap_trimming import trim_heap
from relu_deploy.serving.loading import ModelOptions
from relu_deploy.serving.models import Model, Models
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.prediction.page import WebApp
from relu_deploy.serving.protocol.grpc import GrpcServer, GrpcService
from relu_deploy.serving.protocol.grpc_health import HealthService
from relu_deploy.serving.protocol.grpc_receiving import MessageReceiver
from relu_deploy.serving.protocol.http import HttpApp
from relu_deploy.serving.protocol.management import Management
from relu_deploy.serving.telemetry.drift_monitor import MonitorFactory
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.telemetry.request_log import AccessLog, LogOptions, logging_to_stderr
from relu_deploy.serving.telemetry.traces import TraceOptions, tracing
from relu_deploy.serving.transport.access import AccessOptions, AccessPolicy
from relu_deploy.serving.transport.admission import AdmissionControl, AdmissionLimits
from relu_deploy.serving.transport.limits import HttpLimits
from relu_deploy.serving.transport.sockets import is_loopback, listening, reserved, stop_accepting
from relu_deploy.serving.transport.tls import TlsOptions

__all__ = ["Ports", "ServeOptions", "serve"]

#: seconds between two checks whether a model has changed on disk
WATCH_INTERVAL = 2.0
#: seconds that connections are still accepted after the signal, and then those whose handshake had begun
ACCEPT_SECONDS = 0.1

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class Ports:
    """The ports to listen on; 0 takes any free port, None none."""

    http: int = 8000
    grpc: int | None = 8001
    metrics: int | None = 8002


@dataclass(frozen=True)
class ServeOptions:
    """The options of a server.

    Attributes:
        host: Address to listen on.
        ports: Ports to listen on.
        limits: Of each HTTP request.
        admission: Limits of all requests together.
        access: Who may do what.
        tls: None for plain TCP.
        settings: Of every model.
        pictures: Limits of picture decoding.
        watch: Reload models that change on disk.
        drain_seconds: That accepted requests may take after the signal.
        monitor_share: Of the rows that the Relu monitor checks; None for the default where there is a census, 0 for none.
        log: What is logged.
        traces: Where traces are sent, None for no traces.
    """

    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    limits: HttpLimits = field(default_factory=HttpLimits)
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    access: AccessOptions = field(default_factory=AccessOptions)
    tls: TlsOptions | None = None
    settings: ModelOptions = field(default_factory=ModelOptions)
    pictures: PictureLimits = field(default_factory=PictureLimits)
    watch: bool = True
    drain_seconds: float = 60.0
    monitor_share: float | None = None
    log: LogOptions = field(default_factory=LogOptions)
    traces: TraceOptions | None = None


def serve(
    paths: Sequence[str | Path],
    options: ServeOptions = ServeOptions(),  # it is frozen
    *,
    progress: Callable[[str], None] = lambda _: None,
    started: Callable[[dict[str, Any]], None] = lambda _: None,
    exits: bool = False,
) -> None:
    """Serve the models at `paths` until SIGTERM, SIGINT or SIGHUP.

    Args:
        paths: Bundles, their variants, or ONNX files.
        options: Of the server.
        progress: Called with one line about each step.
        started: Called with the host, ports and models once every model is warm.
        exits: The process ends when this returns: from then on these signals are ignored, so that a second signal does not
            turn a clean end into a kill.

    Raises:
        InputError: If a port cannot be bound or a model cannot be opened.
        ReluDeployError: If a model cannot be loaded.
    """
    if not paths:
        raise UsageError("serve needs a model", "for instance relu-deploy serve digits.rdb")
    try:
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import uvloop
    except ImportError as error:
        raise missing_package(error.name or "uvicorn", "serve") from error
    if options.tls is not None:
        options.tls.check()
    if options.log.as_json:
        progress = log.info
    with logging_to_stderr(options.log), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(paths, options, progress, started, exits))


async def _serve(
    paths: Sequence[str | Path],
    options: ServeOptions,
    progress: Callable[[str], None],
    started: Callable[[dict[str, Any]], None],
    exits: bool,
) -> None:
    from relu_deploy.serving.transport.connection import Connection, ConnectionSettings
    from relu_deploy.serving.transport.http_server import HttpServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ready() -> bool:
        return not stop.is_set()

    with contextlib.ExitStack() as stack:
        http = stack.enter_context(listening(options.host, options.ports.http, "--http-port"))
        metrics = None
        if options.ports.metrics is not None:
            metrics = stack.enter_context(listening(options.host, options.ports.metrics, "--metrics-port"))
        stack.enter_context(_signal_handler(lambda: loop.call_soon_threadsafe(stop.set), exits))
        monitors = MonitorFactory(options.monitor_share)
        models = Models(options.settings, monitors)
        observer: RequestObserver = AccessLog(options.log)
        if options.traces is not None:
            observer = stack.enter_context(tracing(options.traces, observer))
        access = AccessPolicy(options.access, options.host)
        admission = AdmissionControl(models, observer, access, options.admission)
        page = stack.enter_context(WebApp(models, admission, options.pictures))
        grpc = _grpc(models, admission, observer, ready, options)
        try:
            for path in paths:
                progress(f"loading {path}")
                model = await models.add(path)
                await asyncio.to_thread(monitors.require, model.monitor)
                if stop.is_set():
                    return
            app = HttpApp(
                models, admission, observer, {**Management(models, ready).handlers(), **page.handlers()}, options.limits
            )
            connections = ConnectionSettings(options.limits, admission.admit_early)
            server = HttpServer(app, partial(Connection, connections), options.tls, options.drain_seconds)
            serving = await server.serve_on(http)
            end_metrics = await _metrics(models, access, metrics, options)
            if grpc is not None:
                await grpc.start()
            stop_tasks = _start_tasks(models, options)
            _announce(models, options, Ports(_port(http) or 0, None if grpc is None else grpc.port, _port(metrics)), started)
            await stop.wait()
            progress("stopping: finishing the accepted requests")
            stop_tasks()
            connections.draining = True
            await asyncio.sleep(ACCEPT_SECONDS)
            stop_accepting(http)
            await asyncio.sleep(ACCEPT_SECONDS)
            server.should_exit = True
            await asyncio.gather(serving, *([] if grpc is None else [grpc.drain(options.drain_seconds)]))
            await end_metrics()
        finally:
            if grpc is not None:
                await grpc.drain(0)
            await models.close()


def _port(bound: socket.socket | None) -> int | None:
    return None if bound is None else bound.getsockname()[1]


def _announce(models: Models, options: ServeOptions, ports: Ports, started: Callable[[dict[str, Any]], None]) -> None:
    """Report that the server listens."""
    scheme = "http" if options.tls is None else "https"
    where = {"host": options.host, "scheme": scheme, "http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
    _warn_if_open(options)
    started({**where, "models": [_summary(model) for model in models.loaded()]})
    log.info("listening", extra={"fields": where})


def _warn_if_open(options: ServeOptions) -> None:
    if options.access.api_keys is None and not is_loopback(options.host):
        log.warning("listening on %s without --api-key-file: everybody who reaches the port can use the models", options.host)


def _summary(model: Model) -> dict[str, Any]:
    return {"name": model.name, "backend": model.backend, "max_batch": model.limits.max_batch}


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the server; SIGHUP not where it is ignored, as below nohup."""
    stop = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stop.append(signal.SIGHUP)
    return stop


@contextlib.contextmanager
def _signal_handler(act: Callable[[], object], exits: bool) -> Iterator[None]:
    """Call `act` on SIGTERM, SIGINT and SIGHUP, and restore the former handlers at the end; ignore them where the process `exits`.

    The loop removes handlers of its own when it closes, and a second signal would then kill.
    """
    before = {number: signal.signal(number, lambda *_: act()) for number in _stop_signals()}
    ended = False
    try:
        yield
        ended = True
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if exits and ended else handler)


async def _metrics(
    models: Models, access: AccessPolicy, bound: socket.socket | None, options: ServeOptions
) -> Callable[[], Awaitable[None]]:
    """Serve /metrics on `bound`, if any, and return a function that stops it."""
    from relu_deploy.serving.telemetry.metrics import Metrics, MetricsApp
    from relu_deploy.serving.transport.connection import Connection, ConnectionSettings
    from relu_deploy.serving.transport.http_server import HttpServer

    if bound is None:
        return partial(asyncio.sleep, 0)
    protocol = partial(Connection, ConnectionSettings(options.limits))
    server = HttpServer(MetricsApp(Metrics(models), access), protocol, options.tls, options.drain_seconds)
    serving = await server.serve_on(bound)

    async def end() -> None:
        server.should_exit = True
        await serving

    return end


def _grpc(
    models: Models, admission: AdmissionControl, observer: RequestObserver, ready: Callable[[], bool], options: ServeOptions
) -> GrpcServer | None:
    """Return the gRPC server, its port bound, None without one. Raises InputError when the port cannot be bound."""
    port = options.ports.grpc
    if port is None:
        return None
    receiver = MessageReceiver(options.limits.body_seconds)
    services = [
        GrpcService(models, admission, observer, ready, options.limits.max_body, receiver),
        HealthService(models, ready, receiver),
    ]
    with reserved(options.host, port, "--grpc-port") as number:  # its error has the reason, which gRPC's does not
        return GrpcServer(services, options.host, number, options.limits.max_body, options.tls)


def _start_tasks(models: Models, options: ServeOptions) -> Callable[[], None]:
    """Start what runs beside the requests, and return a function that stops it."""
    tasks = [asyncio.create_task(work) for work in (collect_garbage(), trim_heap(), *([_watch(models)] if options.watch else []))]

    def stop() -> None:
        for task in tasks:
            task.cancel()

    return stop


async def _watch(models: Models) -> None:
    while True:
        await asyncio.sleep(WATCH_INTERVAL)
        for line in await models.reload_changed():
            log.info(line)
