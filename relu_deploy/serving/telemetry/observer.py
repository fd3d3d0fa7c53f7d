"""The interface of what is notified of each request when it has ended: the log, and traces."""

from __future__ import annotations

from typing import Protocol

from relu_deploy.serving.protocol.routes import RequestContext

__all__ = ["MAX_TEXT", "RequestObserver"]

#: characters kept of a text that a client chose
MAX_TEXT = 128


class RequestObserver(Protocol):
    """Is notified of requests. Called on the event loop, once for each."""

    def on_complete(self, context: RequestContext, status: int, seconds: float) -> None:
        """Record a request that has just ended.

        Args:
            context: The request.
            status: HTTP's status code, also for gRPC; 0 where the client disconnected before there was an answer.
            seconds: From the request's arrival to its end.
        """
