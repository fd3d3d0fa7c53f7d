"""Loading one model of a server: its session, warmed up, and whether requests of several clients may share a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from relu_deploy.backends import Session, backend_for, load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported
from relu_deploy.graph import load_model
from relu_deploy.graph.shapes.input_ranges import integer_ranges
from relu_deploy.serving.batcher import Limits
from relu_deploy.serving.protocol.tensors import DATATYPES
from relu_deploy.signing.run import require_signature
from relu_deploy.tensors import Array, Feeds, random_feeds

__all__ = ["Loaded", "ModelOptions", "load_warm", "stamp_of"]

#: sizes of a varying dimension beside the batch that are tried, in this order, until the model accepts one
TRIAL_SIZES = (16, 64, 224)
#: largest difference between a row alone and in a batch, in units of the largest number, that counts as rounding
TOLERANCE = 0.05

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
    unnamed = [spec for spec in (*bundle.inputs, *bundle.outputs) if spec.dtype not in DATATYPES]
    if unnamed:
        raise InputError(f"{bundle.path}: {unnamed[0]} has a type that the protocol does not have", "serve a model without it")
    for note in bundle.notes:
        log.warning("%s: %s", bundle.path, note)
    session = load(bundle, options.backend, threads=options.threads, device=options.device, spin=False)
    try:
        ranges = integer_ranges(load_model(bundle.onnx))
        trial = _Trial(session, ranges)
        reason = _declared_reason(session) or trial.reason()
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


def _declared_reason(session: Session) -> str:
    """Return why the declared shapes do not allow to join requests along axis 0, "" where they do."""
    for kind, specs in (("input", session.inputs), ("output", session.outputs)):
        for spec in specs:
            if spec.batch is None:
                return f"{kind} {spec.name!r} has no batch axis"
            if spec.batch_axis != 0:
                return f"the batch axis of {kind} {spec.name!r} is {spec.batch_axis}, not 0"
            if kind == "input" and isinstance(spec.batch, int):
                return f"the batch of input {spec.name!r} is fixed at {spec.batch}"
    return ""


class _Trial:
    """Runs a session on rows together and one by one.

    Attributes:
        has_run: The model has run at least once.
        must_run: Random inputs are certainly valid, so that a failure is the backend's.
    """

    def __init__(self, session: Session, ranges: Mapping[str, tuple[int, int]]) -> None:
        self._session, self._ranges = session, ranges
        self._size = 0
        self.has_run = False
        varies = any(isinstance(dim, str) for spec in session.inputs for dim in spec.shape[1:])
        self.must_run = not varies and all(spec.dtype == "uint8" or _is_float(spec.dtype) for spec in session.inputs)

    def run(self, rows: int) -> Feeds | None:
        """Return the outputs for random rows, None where the model does not accept them."""
        return self._outputs(self._feeds(rows)) if self.has_run and rows else None

    def reason(self) -> str:
        """Return why rows cannot share a run, "" where they can, or where no trial is possible."""
        for size in TRIAL_SIZES:
            self._size = size
            two = self._feeds(2)
            alone = [self._outputs({name: array[row : row + 1] for name, array in two.items()}) for row in range(2)]
            if alone[0] is None or alone[1] is None:
                continue
            self.has_run = True
            together = self._outputs(two)
            if together is None:
                return "the model does not run with two rows"
            return next((reason for name in together if (reason := _difference(name, together, alone))), "")
        return ""

    def _outputs(self, feeds: Feeds) -> Feeds | None:
        try:
            return self._session.run(feeds)
        except Exception:  # a backend may raise anything
            return None

    def _feeds(self, rows: int) -> Feeds:
        fill = {dim: self._size for spec in self._session.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
        fill |= {spec.batch: rows for spec in self._session.inputs if isinstance(spec.batch, str)}
        numeric = [spec for spec in self._session.inputs if spec.dtype != "object"]
        feeds = random_feeds(numeric, rows, fill=fill, ranges=self._ranges)
        for spec in self._session.inputs:
            if spec.dtype == "object":
                shape = [dim if isinstance(dim, int) else fill[dim] for dim in spec.shape]
                feeds[spec.name] = np.array([str(number) for number in range(int(np.prod(shape)))], object).reshape(shape)
        return feeds


def _difference(name: str, together: Feeds, alone: Sequence[Feeds | None]) -> str:
    """Return how output `name` of two rows differs from those of each row alone, "" where it does not."""
    both = together[name]
    singles = [each[name] for each in alone if each is not None]
    if not both.ndim or len(both) != 2 or any(each.shape[:1] != (1,) or each.shape[1:] != both.shape[1:] for each in singles):
        return f"output {name!r} does not have one row for each row of the inputs"
    if both.dtype.kind in "OSU":
        return "" if all(np.all(both[row] == singles[row][0]) for row in range(2)) else f"rows share output {name!r}"
    pairs = [(_as_float(both[row]), _as_float(singles[row][0])) for row in range(2)]
    if both.dtype.kind in "biu":
        # The largest of two numbers that differ by rounding may be another one in a batch.
        different = max((float((one != other).mean()) for one, other in pairs if one.size), default=0.0)
        return "" if different <= 0.1 else f"a row of output {name!r} depends on the other rows"
    scale = max((float(np.abs(other[np.isfinite(other)]).max(initial=0)) for _, other in pairs), default=0.0)
    for one, other in pairs:
        same = (np.abs(one - other) <= TOLERANCE * scale + 1e-6) | (one == other) | (np.isnan(one) & np.isnan(other))
        if not same.all():
            return f"a row of output {name!r} depends on the other rows"
    return ""


def _as_float(array: Array) -> Array:
    return array.astype(np.float64)


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a bundle or file is replaced or its manifest rewritten; None when it does not exist."""
    file = path / "manifest.json" if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
