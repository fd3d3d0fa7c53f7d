"""Loading one model of a server: its session, warmed up, and how its requests may be batched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from relu_deploy.backends import Session, load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.protocol.tensors import DATATYPES
from relu_deploy.tensors import random_feeds

__all__ = ["ModelOptions", "limits_of", "load_warm", "stamp_of"]


@dataclass(frozen=True)
class ModelOptions:
    """How every model of a server is run.

    Attributes:
        backend: Its name.
        threads: Of one session, 0 for the backend's default.
        device: Index of the GPU.
        limits: Of each model's queue.
        deadline: Seconds that a request may wait in the queue, None for no limit.
        allow_nan: Accept NaN and infinities among the inputs.
    """

    backend: str = "onnxruntime-cpu"
    threads: int = 0
    device: int = 0
    limits: Limits = field(default_factory=Limits)
    deadline: float | None = None
    allow_nan: bool = False


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a bundle or file is replaced or its manifest rewritten; None when it does not exist."""
    file = path / "manifest.json" if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def load_warm(bundle: Bundle, settings: ModelOptions) -> Session:
    """Return a session that has run once with one row and once with the largest batch."""
    unnamed = [spec for spec in (*bundle.inputs, *bundle.outputs) if spec.dtype not in DATATYPES]
    if unnamed:
        raise InputError(f"{bundle.path}: {unnamed[0]} has a type that the protocol does not have", "serve a model without it")
    session = load(bundle, settings.backend, threads=settings.threads, device=settings.device, spin=False)
    try:
        varies = [spec for spec in session.inputs if any(isinstance(size, str) for size in spec.shape[1:])]
        numeric = all(spec.dtype != "object" for spec in session.inputs)
        for rows in () if varies or not numeric else sorted({1, limits_of(session, settings.limits).max_batch}):
            session.run(random_feeds(session.inputs, rows))
    except Exception as error:  # a backend may raise anything
        session.close()
        if isinstance(error, ReluDeployError):
            raise
        raise Unsupported(
            f"{settings.backend} loads {bundle.path}, but cannot run it: {' '.join(str(error).split())[:300]}",
            "relu-deploy verify --backend reference runs any graph",
        ) from error
    return session


def limits_of(session: Session, limits: Limits) -> Limits:
    """Return `limits` for a model whose rows are independent, else limits that run one request at a time."""
    first = session.inputs[0].batch
    independent = isinstance(first, str) and all(spec.batch == first for spec in (*session.inputs, *session.outputs))
    return limits if independent else Limits(1, 0.0, limits.queue)
