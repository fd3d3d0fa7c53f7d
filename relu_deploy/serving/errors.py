"""What a server can answer besides an inference, each with its HTTP status and its gRPC code.

    ServeError
    ├── InvalidArgument   400  INVALID_ARGUMENT     the request is not what the model takes
    ├── NotFound          404  NOT_FOUND            no such model, version or path
    ├── TooLarge          413  RESOURCE_EXHAUSTED   a body or picture beyond the limit
    ├── Unavailable       503  UNAVAILABLE          the queue is full, or the server is going down: try again
    ├── DeadlineExceeded  504  DEADLINE_EXCEEDED    the deadline passed before the model could run
    └── InternalError     500  INTERNAL             the backend failed on a valid request

The numbers are Triton's, so that its clients retry what they would retry there.
"""

from __future__ import annotations

from relu_deploy.errors import ReluDeployError

__all__ = ["DeadlineExceeded", "InternalError", "InvalidArgument", "NotFound", "ServeError", "TooLarge", "Unavailable"]


class ServeError(ReluDeployError):
    """An answer that is an error. http, grpc: its codes. reason: its name in statistics and metrics. retry_after: seconds."""

    http = 500
    grpc = "INTERNAL"
    reason = "failed"

    def __init__(self, message: str, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after

    @property
    def told(self) -> str:
        """Return what the client is told, on one line."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidArgument(ServeError):
    """The request is not what the model takes."""

    http, grpc, reason = 400, "INVALID_ARGUMENT", "invalid"


class NotFound(ServeError):
    """There is no such model, version or path."""

    http, grpc, reason = 404, "NOT_FOUND", "notfound"


class TooLarge(ServeError):
    """A body, or a picture once it is unpacked, is beyond the limit."""

    http, grpc, reason = 413, "RESOURCE_EXHAUSTED", "toolarge"


class Unavailable(ServeError):
    """The queue is full or the server is going down; a later try may succeed."""

    http, grpc, reason = 503, "UNAVAILABLE", "busy"


class DeadlineExceeded(ServeError):
    """The request's deadline passed before the model could run it."""

    http, grpc, reason = 504, "DEADLINE_EXCEEDED", "late"


class InternalError(ServeError):
    """The backend failed on a request that fits the model."""
