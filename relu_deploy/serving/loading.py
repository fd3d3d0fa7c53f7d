"""Loading one model of a server: its session, warmed up, and whether requests of several clients may share a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relu_deploy.backends import Session, backend_for, load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported
from relu_deploy.graph import read_model
from relu_deploy.graph.shapes.input_ranges import integer_ranges
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.protocol.tensors import why_no_datatype
from relu_deploy.serving.row_trial import RowTrial, declared_reason
from relu_deploy.signing.run import require_signature
from relu_deploy.tensors import random_feeds

__all__ = ["Loaded", "ModelOptions", "load_warm", "stamp_of"]

log = logging.getLogger("relu_deploy.serve")


@dataclass(frozen=True)
class ModelOptions:
    """How every model of a server is run.

    Attributes:
        backend: Its name, "" for the one that each model was optimized for, see `backend_of`.
        threads: Of one session, 0 for the backend's default.
        device: Index of the GPU.
        limits: Of each model's queue.
        deadline: Seconds that a request may wait in the queue, None for no limit.
        allow_nan: Accept NaN and infinities among the inputs.
        signature_key: Public key; models that are not signed by it are refused. None accepts all.
        load_seconds: Most seconds that loading one model may take, None for no limit.
    """

    backend: str = ""
    threads: int = 0
    device: int = 0
    limits: Limits = field(default_factory=Limits)
    deadline: float | None = None
    allow_nan: bool = False
    signature_key: Path | None = None
    load_seconds: float | None = None

    def backend_of(self, bundle: Bundle) -> str:
        """Return the name of the backend of one model."""
        return self.backend or backend_for(bundle)


@dataclass(frozen=True)
class Loaded:
    """A session that has run, and how it is used.

    Attributes:
        session: The session.
        limits: Of the model's queue; one request a run where requests cannot share one.
        unbatched_reason: Why requests are run one at a time, "" where they may share a run.
        ranges: By name of an integer input, the smallest and the largest value that the graph accepts.
    """

    session: Session
    limits: Limits
    unbatched_reason: str
    ranges: Mapping[str, tuple[int, int]]


def load_warm(bundle: Bundle, options: ModelOptions) -> Loaded:
    """Load a model and run it once with one row and once with the largest batch.

    Raises:
        InputError: If the signature that is required is missing or not valid, or a tensor has a type that the protocol does not
            have.
        Unsupported: If the backend cannot run the model.
    """
    if options.signature_key is not None:
        require_signature(bundle, options.signature_key)
    for spec in (*bundle.inputs, *bundle.outputs):
        if (why := why_no_datatype(spec)) is not None:
            raise InputError(f"{bundle.path}: {why[0]}", why[1])
    for note in bundle.notes:
        log.warning("%s: %s", bundle.path, note)
    session = load(bundle, options.backend, threads=options.threads, device=options.device, spin=False)
    try:
        ranges = integer_ranges(read_model(bundle.onnx))
        trial = RowTrial(session, ranges)
        reason = declared_reason(session.inputs, session.outputs) or trial.reason()
        limits = options.limits if not reason else Limits(1, 0.0, options.limits.queue)
        if not trial.has_run and trial.must_run:
            session.run(random_feeds(session.inputs))  # raises the error of the trial
        if not reason:
            trial.run(limits.max_batch)
    except Exception as error:  # a backend may raise anything
        session.close()
        if isinstance(error, ReluDeployError):
            raise
        raise Unsupported(
            f"{options.backend_of(bundle)} loads {bundle.path}, but cannot run it: {' '.join(str(error).split())[:300]}",
            "relu-deploy verify --backend reference runs any graph",
        ) from error
    if reason:
        log.info("%s: requests are run one at a time: %s", bundle.name, reason)
    return Loaded(session, limits, reason, ranges)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a bundle or file is replaced or its manifest rewritten; None when it does not exist."""
    file = path / "manifest.json" if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
