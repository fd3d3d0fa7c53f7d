"""The HTTP server: uvicorn's, but for the signals and for how connections are accepted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from relu_deploy.serving.transport.accepting import Acceptor
from relu_deploy.serving.transport.connection import close_longest_waiting
from relu_deploy.serving.transport.tls import TlsOptions

__all__ = ["HttpServer"]


class HttpServer(uvicorn.Server):
    """Serves an application on one bound socket."""

    def __init__(self, app: Any, protocol: Callable[..., asyncio.Protocol], tls: TlsOptions | None, drain_seconds: float) -> None:
        """Make the server.

        Args:
            app: The ASGI application.
            protocol: Makes the protocol of one connection from uvicorn's options.
            tls: None for plain TCP.
            drain_seconds: That accepted requests may take when the server stops.
        """
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]  # it takes any factory
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]
            **({} if tls is None else tls.uvicorn_options()),
        )
        super().__init__(config)
        self._protocol = protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The signals belong to the process, which has several servers to stop.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on `sockets`."""
        protocol = partial(self._protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        close_waiting = partial(close_longest_waiting, self.server_state.connections)
        self.servers = [Acceptor(sockets or (), protocol, self.config.ssl, close_waiting)]  # type: ignore[list-item]
        self.started = True

    async def serve_on(self, bound: socket.socket) -> asyncio.Task[None]:
        """Start to serve on a bound socket, and return the task, which ends after `should_exit` is set."""
        serving = asyncio.create_task(self.serve([bound]))
        while not self.started and not serving.done():
            await asyncio.sleep(0.005)
        return serving
