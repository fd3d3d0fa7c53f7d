"""The models of a server: loaded, warmed up, exchanged while they are in use, and unloaded without losing a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from relu_deploy.backends import Session, capabilities, load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported, UsageError
from relu_deploy.serving.batcher import Batcher, Limits
from relu_deploy.serving.errors import InvalidArgument, NotFound, Unavailable
from relu_deploy.serving.prediction.texts import fed, outer_specs
from relu_deploy.serving.protocol.json_codec import DATATYPES, InferRequest, datatype_of, metadata_of
from relu_deploy.serving.telemetry.statistics import Statistics, Timings
from relu_deploy.tensors import Feeds, TensorSpec, random_feeds

__all__ = ["Model", "ModelOptions", "Models", "OutputObserver"]

VERSION = "1"


class OutputObserver(Protocol):
    """What looks at a model's batches, in the batch thread: the feeds, the outputs, and how many rows are real."""

    def __call__(self, feeds: Feeds, outputs: Feeds, rows: int, /) -> None: ...

    def to_json(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


#: called when a model is loaded, with its bundle; returns who watches it, or None
ObserverFactory = Callable[[Bundle], OutputObserver | None]


@dataclass(frozen=True)
class ModelOptions:
    """How every model of a server is run. threads: of one session. deadline: seconds that a request may wait, None for ever.

    allow_nan: NaN and infinities among the inputs are taken, not refused.
    """

    backend: str = "onnxruntime-cpu"
    threads: int = 0
    device: int = 0
    limits: Limits = field(default_factory=Limits)
    deadline: float | None = None
    allow_nan: bool = False


class Model:
    """One loaded model: its bundle, its session behind a batcher, and what requests have to look like."""

    def __init__(
        self, name: str, bundle: Bundle, session: Session, settings: ModelOptions, statistics: Statistics, watch: ObserverFactory
    ) -> None:
        self.name, self.bundle, self.facts = name, bundle, dict(session.facts)
        self.inputs, self.outputs = outer_specs(bundle.manifest, session.inputs), session.outputs
        self._inner = session.inputs
        self.settings, self.statistics = settings, statistics
        self.limits = _limits(session, settings.limits)
        self.stamp = stamp_of(bundle.path)
        self.watch = watch(bundle)
        self._batcher = Batcher(name, session, self.limits, statistics, self.watch)
        self._running = 0

    @property
    def batches(self) -> bool:
        """Return whether requests of several clients are run together."""
        return self.limits.max_batch > 1

    @property
    def waiting(self) -> int:
        return self._batcher.waiting

    def room(self) -> int:
        """Return how many more requests fit, 0 while more than half of the queue is taken."""
        return self._batcher.room()

    def check_room(self, entering: int = 0) -> None:
        """Raise Busy where `infer` would. entering: requests that were let in and have not asked for that yet."""
        self._batcher.check_room(entering)

    async def infer(
        self,
        request: InferRequest,
        on_disconnect: Callable[[asyncio.Future[Any]], None] = lambda _: None,
        within: float | None = None,
    ) -> Feeds:
        """Return the outputs for the request's inputs, which fit `inputs`. within: seconds that its client waits.

        leaving: called with a future that is to be cancelled when the client goes: it is then not run, if it still waits.
        Raises Invalid for too many rows, Busy, Late, or Failed.
        """
        return (await self.timed(request, on_disconnect, within))[0]

    async def timed(
        self,
        request: InferRequest,
        on_disconnect: Callable[[asyncio.Future[Any]], None] = lambda _: None,
        within: float | None = None,
    ) -> tuple[Feeds, Timings]:
        """Return what `infer` does, and where the time went."""
        rows = self._rows(request.inputs)
        ticket = self._batcher.submit(fed(request.inputs, self._inner), rows, self._deadline(request.parameters, within))
        self.statistics.pending += 1
        on_disconnect(ticket.future)
        try:
            outputs = await ticket.future
            assert ticket.timings is not None
            return outputs, ticket.timings
        finally:
            self.statistics.pending -= 1

    def _rows(self, inputs: Mapping[str, Any]) -> int:
        first = self.inputs[0]
        if not isinstance(first.batch, str):
            return 1 if first.batch is None else int(first.batch)
        rows = int(inputs[first.name].shape[0])
        if rows > self.limits.max_batch:
            raise InvalidArgument(
                f"a batch of {rows} is more than the {self.limits.max_batch} that model {self.name!r} takes at once"
            )
        return rows

    def _deadline(self, parameters: Mapping[str, Any], within: float | None) -> float | None:
        """Return when the request is too late: the first of Triton's parameter `timeout`, in microseconds, `within`, and ours."""
        asked = 0 if parameters.get("timeout") is None else parameters["timeout"]
        if not isinstance(asked, int | float) or isinstance(asked, bool) or asked < 0:
            raise InvalidArgument(f"'timeout' is {asked!r}, and must be a number of microseconds")
        given = [seconds for seconds in (self.settings.deadline, within, asked / 1e6 or None) if seconds is not None]
        return time.perf_counter() + min(given) if given else None

    def close(self) -> None:
        """Answer what was taken and end the session. Blocks."""
        self._batcher.close()
        if self.watch is not None:
            self.watch.close()

    def metadata(self) -> dict[str, Any]:
        platform = capabilities(self.settings.backend).platform or self.settings.backend
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": platform,
            "inputs": [metadata_of(spec) for spec in self.inputs],
            "outputs": [metadata_of(spec) for spec in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """Return the model's configuration in Triton's terms, which leave the batch out of the sizes."""
        told: dict[str, Any] = {
            "name": self.name,
            "platform": self.metadata()["platform"],
            "backend": self.settings.backend,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.limits.max_batch if self.batches else 0,
            "input": [self._config_of(spec) for spec in self.inputs],
            "output": [self._config_of(spec) for spec in self.outputs],
            "instance_group": [
                {
                    "name": f"{self.name}_0",
                    "kind": "KIND_GPU" if capabilities(self.settings.backend).on_gpu else "KIND_CPU",
                    "count": 1,
                }
            ],
        }
        if self.batches:
            told["dynamic_batching"] = {
                "preferred_batch_size": [self.limits.max_batch],
                "max_queue_delay_microseconds": int(self.limits.max_delay * 1e6),
            }
        return told

    def _config_of(self, spec: TensorSpec) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else -1 for size in spec.shape]
        return {
            "name": spec.name,
            "data_type": f"TYPE_{datatype_of(spec).replace('BYTES', 'STRING')}",
            "dims": sizes[1:] if self.batches else sizes,
        }


@dataclass
class Entry:
    """A model that the server knows: where it comes from, and the loaded one or why there is none."""

    path: Path
    statistics: Statistics
    model: Model | None = None
    reason: str = ""


class Models:
    """All models of a server, by name. For the event loop's thread; what takes long happens in others."""

    def __init__(self, settings: ModelOptions, watch: ObserverFactory = lambda _: None) -> None:
        self.settings, self._watch = settings, watch
        self._entries: dict[str, Entry] = {}
        self._changing = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def add(self, path: str | Path) -> Model:
        """Load the model at `path`. Raises what opening and loading raise, UsageError for a name that is taken."""
        bundle = await asyncio.to_thread(Bundle.open, path)
        name = f"{bundle.name}-{bundle.variant}" if bundle.variant else bundle.name
        if name in self._entries:
            raise UsageError(f"two models are called {name!r}: {self._entries[name].path} and {path}", "serve one of them")
        self._entries[name] = Entry(Path(path), Statistics())
        try:
            return await self.load(name)
        except ReluDeployError:
            del self._entries[name]
            raise

    async def load(self, name: str) -> Model:
        """Return model `name`, loaded anew. Requests go to the old one until the new one is warm; it then answers what it took.

        Raises NotFound, or what loading raises; the old one then goes on.
        """
        entry = self._entry(name)
        async with self._changing:
            try:
                bundle = await asyncio.to_thread(Bundle.open, entry.path)
                session = await asyncio.to_thread(_warm, bundle, self.settings)
            except ReluDeployError as error:
                entry.reason = error.message
                entry.statistics.loaded("failed")
                raise
            entry.statistics.loaded("loaded")
            old, entry.model, entry.reason = (
                entry.model,
                Model(name, bundle, session, self.settings, entry.statistics, self._watch),
                "",
            )
            if old is not None:
                self._end(old)
            return entry.model

    async def unload(self, name: str) -> None:
        """Take the model away; what it took is still answered. Raises NotFound."""
        entry = self._entry(name)
        async with self._changing:
            if entry.model is not None:
                model, entry.model, entry.reason = entry.model, None, "unloaded"
                self._end(model)

    def get(self, name: str, version: str = "") -> Model:
        """Return the loaded model. Raises NotFound for a name or version that there is not, Busy for one that is not loaded."""
        entry = self._entry(name)
        if version not in ("", VERSION, "-1"):
            raise NotFound(f"model {name!r} has no version {version!r}", f"it has {VERSION}")
        if entry.model is None:
            raise Unavailable(f"model {name!r} is not loaded: {entry.reason or 'it is being loaded'}")
        return entry.model

    def loaded(self) -> list[Model]:
        return [entry.model for entry in self._entries.values() if entry.model is not None]

    def all_ready(self) -> bool:
        return bool(self._entries) and all(
            entry.model is not None or entry.reason == "unloaded" for entry in self._entries.values()
        )

    def index(self) -> list[dict[str, str]]:
        """Return the repository's index as Triton gives it."""
        return [
            {
                "name": name,
                "version": VERSION,
                "state": "READY" if entry.model is not None else "UNAVAILABLE",
                "reason": entry.reason,
            }
            for name, entry in sorted(self._entries.items())
        ]

    def statistics(self) -> dict[str, Statistics]:
        return {name: entry.statistics for name, entry in self._entries.items()}

    async def reload_changed(self) -> list[str]:
        """Load every model anew whose file has changed, and return one line about each."""
        lines = []
        for name, entry in list(self._entries.items()):
            now = await asyncio.to_thread(stamp_of, entry.path)
            if entry.model is None or now is None or now == entry.model.stamp:
                continue
            try:
                await self.load(name)
                lines.append(f"{name}: reloaded")
            except ReluDeployError as error:
                # Not tried again until it changes once more; the old one goes on serving.
                entry.model.stamp = now
                lines.append(f"{name}: changed on the disk, but cannot be loaded: {error.message}; the old one goes on")
        return lines

    async def close(self) -> None:
        """Answer everything that was taken and end all sessions."""
        for entry in self._entries.values():
            if entry.model is not None:
                self._end(entry.model)
                entry.model, entry.reason = None, "the server is going down"
        while self._ending:
            await asyncio.gather(*self._ending)

    def _end(self, model: Model) -> None:
        task = asyncio.create_task(asyncio.to_thread(model.close))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise NotFound(f"there is no model called {name!r}", f"there are {', '.join(sorted(self._entries)) or 'none'}")
        return self._entries[name]


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a bundle or file is replaced or its manifest rewritten; None when it is not there."""
    file = path / "manifest.json" if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _warm(bundle: Bundle, settings: ModelOptions) -> Session:
    """Return a session that has run once with one row and once with as many as it may get."""
    strange = [spec for spec in (*bundle.inputs, *bundle.outputs) if spec.dtype not in DATATYPES]
    if strange:
        raise InputError(f"{bundle.path}: {strange[0]} has a type that the protocol has no name for", "serve a model without it")
    session = load(bundle, settings.backend, threads=settings.threads, device=settings.device, spin=False)
    try:
        varies = [spec for spec in session.inputs if any(isinstance(size, str) for size in spec.shape[1:])]
        numeric = all(spec.dtype != "object" for spec in session.inputs)
        for rows in () if varies or not numeric else sorted({1, _limits(session, settings.limits).max_batch}):
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


def _limits(session: Session, wanted: Limits) -> Limits:
    """Return `wanted` for a model whose rows are independent, else one request at a time."""
    first = session.inputs[0].batch
    together = isinstance(first, str) and all(spec.batch == first for spec in (*session.inputs, *session.outputs))
    if not together:
        return Limits(1, 0.0, wanted.queue)
    return wanted
