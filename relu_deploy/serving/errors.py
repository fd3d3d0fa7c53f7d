"""The errors that a server answers with, each with its HTTP status and its gRPC status code.

    ServeError
    ├── InvalidArgument   400  INVALID_ARGUMENT     the request does not fit the model
    ├── Unauthenticated   401  UNAUTHENTICATED      the request has no valid API key
    ├── Forbidden         403  PERMISSION_DENIED    the key, host or origin does not allow it
    ├── NotFound          404  NOT_FOUND            no such model, version or endpoint
    ├── TooLarge          413  RESOURCE_EXHAUSTED   a body or picture exceeds a limit
    ├── Unavailable       503  UNAVAILABLE          the queue is full, or the server is shutting down: try again
    ├── DeadlineExceeded  504  DEADLINE_EXCEEDED    the deadline passed before the model could run
    └── InternalError     500  INTERNAL             the backend failed on a valid request

The codes are Triton's, so that its clients retry the same errors.
"""

from __future__ import annotations

from relu_deploy.errors import ReluDeployError
from relu_deploy.prediction.errors import InvalidOutput
from relu_deploy.preprocessing.errors import PictureTooLarge

__all__ = [
    "DeadlineExceeded",
    "Forbidden",
    "InternalError",
    "InvalidArgument",
    "NotFound",
    "ServeError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "serve_error",
]


class ServeError(ReluDeployError):
    """An error that a request is answered with.

    Attributes:
        http: The HTTP status.
        grpc: The gRPC status code.
        reason: The error's name in statistics and metrics.
        retry_after: Seconds after which a retry may succeed, None where it will not.
    """

    http = 500
    grpc = "INTERNAL"
    reason = "failed"

    def __init__(self, message: str, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after

    @property
    def text(self) -> str:
        """Return message and hint on one line, as the client gets them."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidArgument(ServeError):
    """The request does not fit the model."""

    http, grpc, reason = 400, "INVALID_ARGUMENT", "invalid"


class Unauthenticated(ServeError):
    """The request has no valid API key."""

    http, grpc, reason = 401, "UNAUTHENTICATED", "unauthenticated"


class Forbidden(ServeError):
    """The request's key, host or origin does not allow it, or the server does not allow it to anybody."""

    http, grpc, reason = 403, "PERMISSION_DENIED", "forbidden"


class NotFound(ServeError):
    """There is no such model, version or endpoint."""

    http, grpc, reason = 404, "NOT_FOUND", "notfound"


class TooLarge(ServeError):
    """A body, or a picture once it is decoded, exceeds a limit."""

    http, grpc, reason = 413, "RESOURCE_EXHAUSTED", "toolarge"


class Unavailable(ServeError):
    """The queue is full or the server is shutting down; a retry may succeed."""

    http, grpc, reason = 503, "UNAVAILABLE", "busy"


class DeadlineExceeded(ServeError):
    """The request's deadline passed before the model could run it."""

    http, grpc, reason = 504, "DEADLINE_EXCEEDED", "late"


class InternalError(ServeError):
    """The backend failed on a request that fits the model."""


def serve_error(error: ReluDeployError) -> ServeError:
    """Return the error that a request is answered with whose handling raised `error`."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, PictureTooLarge):
        return TooLarge(error.message, error.hint)
    if isinstance(error, InvalidOutput):
        return InternalError(error.message, error.hint)
    return InvalidArgument(error.message, error.hint)
