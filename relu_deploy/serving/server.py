"""The process: binds its ports, loads its models, answers until it is told to stop, and then finishes what it took."""

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
from relu_deploy.serving.models import ModelOptions, Models
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.prediction.page import WebApp
from relu_deploy.serving.protocol.grpc import GrpcServer, GrpcService
from relu_deploy.serving.protocol.http import HttpApp, HttpLimits, Route
from relu_deploy.serving.telemetry.drift_monitor import MonitorFactory
from relu_deploy.serving.telemetry.observer import RequestObserver
from relu_deploy.serving.telemetry.request_log import Access, AccessLog, LogOptions, logging_to_stderr
from relu_deploy.serving.telemetry.traces import TraceOptions, tracing
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.serving.transport.sockets import listening, stop_accepting

__all__ = ["Ports", "ServeOptions", "serve"]

#: seconds between two looks at whether a model has changed on the disk
WATCH_EVERY = 2.0
#: seconds that connections are still taken after the signal, and then those that had begun are
LINGER = 0.1

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class Ports:
    """Where to listen; 0 takes any free port, None none."""

    http: int = 8000
    grpc: int | None = 8001
    metrics: int | None = 8002


@dataclass(frozen=True)
class ServeOptions:
    """All of a server that is not a model's. drain_seconds: how long what was taken may take after the signal.

    monitor_share: of the rows that the Relu monitor looks at; None for the default where there is a census, 0 for none.
    """

    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    limits: HttpLimits = field(default_factory=HttpLimits)
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
    """Serve the models at `paths` until SIGTERM or SIGINT. started: called with where it listens, once every model is warm.

    exits: the process ends when this returns, so that from then on both signals are ignored: one that comes twice does not
    turn a clean end into a kill.
    Raises what loading a model raises, and InputError for a port that is taken, before anything is served.
    """
    if not paths:
        raise UsageError("serve needs a model", "for instance relu-deploy serve digits.rdb")
    try:
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import uvloop
    except ImportError as error:
        raise missing_package(error.name or "uvicorn", "serve") from error
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
    from relu_deploy.serving.transport.connection import Connection, ConnectionLimits

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    manners = ConnectionLimits()
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(listening(options.host, options.ports.http, "--http-port"))
        wanted = options.ports.metrics
        metrics = None if wanted is None else stack.enter_context(listening(options.host, wanted, "--metrics-port"))
        stack.enter_context(_signalled(lambda: loop.call_soon_threadsafe(stop.set), exits))
        monitored = MonitorFactory(options.monitor_share)
        models = Models(options.settings, monitored)
        routes: list[Route] = [stack.enter_context(WebApp(models, options.pictures))]
        access: RequestObserver = Access(options.log)
        if options.traces is not None:
            access = stack.enter_context(tracing(options.traces, access))
        manners.turn = AdmissionControl(models, access)
        grpc = _grpc(models, options, lambda: not stop.is_set(), access)
        try:
            for path in paths:
                progress(f"loading {path}")
                model = await models.add(path)
                await asyncio.to_thread(monitored.require, model.watch)
                if stop.is_set():
                    return
            app = HttpApp(models, options.limits, routes, lambda: not stop.is_set())
            server, serving = await _started(AccessLog(app, access), partial(Connection, manners), http, options)
            end_metrics = await _metrics(models, metrics, options)
            if grpc is not None:
                await grpc.start()
            watching = asyncio.create_task(_watch(models)) if options.watch else None
            told = [
                {"name": one.name, "backend": one.settings.backend, "max_batch": one.limits.max_batch} for one in models.loaded()
            ]
            ports = {"http": http.getsockname()[1], "grpc": grpc and grpc.port}
            ports["metrics"] = metrics and metrics.getsockname()[1]
            started({"host": options.host, **ports, "models": told})
            log.info("listening", extra={"fields": {"host": options.host, **ports}})
            await stop.wait()
            progress("stopping: finishing what was taken")
            if watching is not None:
                watching.cancel()
            manners.draining = True
            await asyncio.sleep(LINGER)
            stop_accepting(http)
            await asyncio.sleep(LINGER)
            server.should_exit = True
            await asyncio.gather(serving, *([] if grpc is None else [grpc.drain(options.drain_seconds)]))
            await end_metrics()
        finally:
            if grpc is not None:
                await grpc.drain(0)
            await models.close()


@contextlib.contextmanager
def _signalled(act: Callable[[], object], exits: bool) -> Iterator[None]:
    """Call `act` on SIGTERM and SIGINT, and afterwards what was called before, or, before the process `exits`, nothing.

    The loop's own handlers would give way to the system's when it closes, and a second signal then kills.
    """
    before = {number: signal.signal(number, lambda *_: act()) for number in (signal.SIGTERM, signal.SIGINT)}
    ended = False
    try:
        yield
        ended = True
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if exits and ended else handler)


async def _metrics(models: Models, bound: socket.socket | None, options: ServeOptions) -> Callable[[], Awaitable[None]]:
    """Answer /metrics on `bound`, where there is one, and return what ends that."""
    from relu_deploy.serving.telemetry.metrics import Metrics, MetricsApp
    from relu_deploy.serving.transport.connection import Connection, ConnectionLimits

    if bound is None:
        return partial(asyncio.sleep, 0)
    server, serving = await _started(MetricsApp(Metrics(models)), partial(Connection, ConnectionLimits()), bound, options)

    async def end() -> None:
        server.should_exit = True
        await serving

    return end


async def _started(app: Any, protocol: Any, bound: socket.socket, options: ServeOptions) -> tuple[Any, asyncio.Task[None]]:
    """Return a uvicorn server that answers on `bound`, and the task that it runs in."""
    server = _uvicorn(app, protocol, options.drain_seconds)
    serving = asyncio.create_task(server.serve([bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    return server, serving


def _grpc(models: Models, options: ServeOptions, ready: Callable[[], bool], access: RequestObserver) -> GrpcServer | None:
    """Return the gRPC port, bound, None when there is to be none. Raises InputError when it is taken."""
    port = options.ports.grpc
    if port is None:
        return None
    service = GrpcService(models, ready, access)
    with listening(options.host, port, "--grpc-port"):  # says why, which gRPC does not
        pass
    return GrpcServer(service, options.host, port, options.limits.max_body)


def _uvicorn(app: Any, protocol: Any, drain_seconds: float) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # The signals are the process's, which has more than one server to stop.
            yield

    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]
        backlog=4096,
    )
    return Server(config)


async def _watch(models: Models) -> None:
    while True:
        await asyncio.sleep(WATCH_EVERY)
        for line in await models.reload_changed():
            log.info(line)
