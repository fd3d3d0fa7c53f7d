"""The models of a server: loaded, warmed up, replaced while they are in use, and unloaded without losing a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relu_deploy.backends import capabilities
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError, UsageError
from relu_deploy.serving.batcher import Batcher, Slot
from relu_deploy.serving.errors import InvalidArgument, NotFound, Unavailable
from relu_deploy.serving.loading import Loaded, ModelOptions, load_warm, stamp_of
from relu_deploy.serving.prediction.texts import client_specs, encode_texts
from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.serving.protocol.tensors import InferRequest, check_ranges, datatype_of, metadata_of
from relu_deploy.serving.telemetry.statistics import Statistics
from relu_deploy.serving.trial import Trials
from relu_deploy.tensors import Feeds, TensorSpec

__all__ = ["Model", "ModelOptions", "Models", "OutputObserver"]

VERSION = "1"
#: seconds from a failed reload to its first retry, and between later ones
RETRY_SECONDS = 2.0, 10.0


class OutputObserver(Protocol):
    """Is given each batch of a model, in the batch thread."""

    def __call__(self, feeds: Feeds, outputs: Feeds, rows: int, /) -> None: ...

    def to_json(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


#: called with the bundle of a model that is loaded; returns the model's observer, or None
ObserverFactory = Callable[[Bundle], OutputObserver | None]


class Model:
    """One loaded model: its bundle, its session behind a batcher, and what requests have to look like."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        loaded: Loaded,
        settings: ModelOptions,
        statistics: Statistics,
        observer_factory: ObserverFactory,
    ) -> None:
        session = loaded.session
        self.name, self.bundle, self.facts = name, bundle, dict(session.facts)
        self.inputs, self.outputs = client_specs(bundle.manifest, session.inputs), session.outputs
        self._session_inputs, self._ranges = session.inputs, loaded.ranges
        self.settings, self.statistics = settings, statistics
        self.backend = settings.backend_of(bundle)
        self.limits, self.unbatched_reason = loaded.limits, loaded.unbatched_reason
        self.stamp = stamp_of(bundle.path)
        self.monitor = observer_factory(bundle)
        self._batcher = Batcher(name, session, self.limits, statistics, self.monitor)

    @property
    def batches(self) -> bool:
        """Return whether requests of several clients are run together."""
        return self.limits.max_batch > 1

    @property
    def waiting(self) -> int:
        """Return the number of requests in the queue."""
        return self._batcher.waiting

    def free_slots(self) -> int:
        """Return how many more requests the queue takes; 0 while it is more than half full."""
        return self._batcher.free_slots()

    def reserve(self) -> Slot:
        """Return a place in the queue. Raises Unavailable if it is full."""
        return self._batcher.reserve()

    async def infer(self, request: InferRequest, context: RequestContext | None = None) -> Feeds:
        """Run one request.

        Args:
            request: Its inputs fit `inputs`.
            context: Holds the request's place in the queue and how long its client waits; gets the timings. The request
                is not run if its client disconnects while it waits in the queue.

        Returns:
            The model's outputs.

        Raises:
            InvalidArgument: If it has too many rows.
            Unavailable: If it has no place in the queue, and the queue is full.
            DeadlineExceeded: If its deadline passes in the queue.
            InternalError: If the backend fails.
        """
        context = context or RequestContext("", "")
        rows, deadline = self._rows(request.inputs), self._deadline(request.parameters, context.timeout)
        feeds = encode_texts(request.inputs, self._session_inputs)
        check_ranges(feeds, self._ranges)
        queued = self._batcher.submit(feeds, rows, deadline, context.slot)
        self.statistics.pending += 1
        context.cancel_on_disconnect(queued.future)
        try:
            outputs = await queued.future
            context.timings = queued.timings
            return outputs
        finally:
            self.statistics.pending -= 1

    def _rows(self, inputs: Mapping[str, Any]) -> int:
        first = next((spec for spec in self.inputs if spec.batch is not None), None)
        rows = 1 if first is None else int(inputs[first.name].shape[first.batch_axis or 0])
        if not self.unbatched_reason and rows > self.limits.max_batch:
            raise InvalidArgument(f"a batch of {rows} exceeds the maximum of {self.limits.max_batch} for model {self.name!r}")
        return rows

    def _deadline(self, parameters: Mapping[str, Any], timeout: float | None) -> float | None:
        """Return the request's deadline: the first of Triton's parameter `timeout` (microseconds), `timeout` and the server's."""
        own = 0 if parameters.get("timeout") is None else parameters["timeout"]
        if not isinstance(own, int | float) or isinstance(own, bool) or own < 0:
            raise InvalidArgument(f"'timeout' is {own!r}, and must be a number of microseconds")
        limits = [seconds for seconds in (self.settings.deadline, timeout, own / 1e6 or None) if seconds is not None]
        return time.perf_counter() + min(limits) if limits else None

    def close(self) -> None:
        """Answer the accepted requests and end the session. Blocks."""
        self._batcher.close()
        if self.monitor is not None:
            self.monitor.close()

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata, as the protocol has it."""
        platform = capabilities(self.backend).platform or self.backend
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": platform,
            "inputs": [metadata_of(spec) for spec in self.inputs],
            "outputs": [metadata_of(spec) for spec in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """Return the model's configuration in Triton's terms, which leave the batch out of the sizes."""
        config: dict[str, Any] = {
            "name": self.name,
            "platform": self.metadata()["platform"],
            "backend": self.backend,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.limits.max_batch if self.batches else 0,
            "input": [self._config_of(spec) for spec in self.inputs],
            "output": [self._config_of(spec) for spec in self.outputs],
            "instance_group": [
                {
                    "name": f"{self.name}_0",
                    "kind": "KIND_GPU" if capabilities(self.backend).on_gpu else "KIND_CPU",
                    "count": 1,
                }
            ],
        }
        if self.batches:
            config["dynamic_batching"] = {
                "preferred_batch_size": [self.limits.max_batch],
                "max_queue_delay_microseconds": int(self.limits.max_delay * 1e6),
            }
        if self.unbatched_reason:
            config["parameters"] = {"unbatched_reason": {"string_value": self.unbatched_reason}}
        return config

    def _config_of(self, spec: TensorSpec) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else -1 for size in spec.shape]
        return {
            "name": spec.name,
            "data_type": f"TYPE_{datatype_of(spec).replace('BYTES', 'STRING')}",
            "dims": sizes[1:] if self.batches else sizes,
        }


@dataclass
class Entry:
    """A model of the repository: its path, and the loaded model or the reason why there is none.

    A bundle that is copied slowly cannot be loaded until all of it has arrived, so a failed reload is retried.
    """

    path: Path
    statistics: Statistics
    model: Model | None = None
    reason: str = ""
    failed_stamp: tuple[int, int] | None = None
    retry_at: float = 0.0
    retry_seconds: float = RETRY_SECONDS[0]


class Models:
    """All models of a server, by name. For the event loop's thread; loading and closing happen in other threads."""

    def __init__(self, settings: ModelOptions, observer_factory: ObserverFactory = lambda _: None) -> None:
        self.settings, self._observer_factory = settings, observer_factory
        self._entries: dict[str, Entry] = {}
        self._changing = asyncio.Lock()
        self._trials = Trials()
        self._ending: set[asyncio.Task[None]] = set()

    async def add(self, path: str | Path) -> Model:
        """Load the model at `path`.

        Raises:
            UsageError: If a model of the same name is served already.
            ReluDeployError: If the model cannot be opened or loaded.
        """
        bundle = await asyncio.to_thread(Bundle.open, path)
        name = f"{bundle.name}-{bundle.variant}" if bundle.variant else bundle.name
        if name in self._entries:
            raise UsageError(f"two models are called {name!r}: {self._entries[name].path} and {path}", "serve one of them")
        self._entries[name] = Entry(Path(path), Statistics())
        try:
            return await self.load(name, tried=True)
        except ReluDeployError:
            del self._entries[name]
            raise

    async def load(self, name: str, tried: bool = False) -> Model:
        """Load model `name` again and return it.

        Requests go to the old one until the new one is warm; the old one then answers those that it has accepted.

        Args:
            name: Of the model.
            tried: It is known not to crash this process. Otherwise it is first loaded in another one.

        Raises:
            NotFound: If there is no such model.
            ReluDeployError: If it cannot be loaded; the old one stays in use.
        """
        entry = self._entry(name)
        async with self._changing:
            try:
                bundle = await asyncio.to_thread(Bundle.open, entry.path)
                if not tried:
                    await asyncio.to_thread(self._trials.try_to_load, entry.path, self.settings)
                loaded = await asyncio.to_thread(load_warm, bundle, self.settings)
            except ReluDeployError as error:
                entry.reason = error.message
                entry.statistics.loaded("failed")
                raise
            entry.statistics.loaded("loaded")
            old, entry.reason = entry.model, ""
            entry.model = Model(name, bundle, loaded, self.settings, entry.statistics, self._observer_factory)
            if old is not None:
                self._end(old)
            return entry.model

    async def unload(self, name: str) -> None:
        """Unload a model; the requests that it has accepted are still answered. Raises NotFound."""
        entry = self._entry(name)
        async with self._changing:
            if entry.model is not None:
                model, entry.model, entry.reason = entry.model, None, "unloaded"
                self._end(model)

    def get(self, name: str, version: str = "") -> Model:
        """Return the loaded model.

        Raises:
            NotFound: If there is no such model or version.
            Unavailable: If it is not loaded.
        """
        entry = self._entry(name)
        if version not in ("", VERSION, "-1"):
            raise NotFound(f"model {name!r} has no version {version!r}", f"it has {VERSION}")
        if entry.model is None:
            raise Unavailable(f"model {name!r} is not loaded: {entry.reason or 'it is being loaded'}")
        return entry.model

    def loaded(self) -> list[Model]:
        """Return the loaded models."""
        return [entry.model for entry in self._entries.values() if entry.model is not None]

    def all_ready(self) -> bool:
        """Return whether there are models and each is loaded, or was unloaded on request."""
        return bool(self._entries) and all(
            entry.model is not None or entry.reason == "unloaded" for entry in self._entries.values()
        )

    def index(self) -> list[dict[str, str]]:
        """Return the repository's index in Triton's form."""
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
        """Return the statistics of every model by name."""
        return {name: entry.statistics for name, entry in self._entries.items()}

    async def reload_changed(self) -> list[str]:
        """Load every model again whose file has changed, and return one line about each."""
        lines = []
        for name, entry in list(self._entries.items()):
            now = await asyncio.to_thread(stamp_of, entry.path)
            if entry.model is None or now is None or now == entry.model.stamp:
                continue
            if now == entry.failed_stamp and time.monotonic() < entry.retry_at:
                continue
            try:
                await self.load(name)
                entry.failed_stamp = None
                lines.append(f"{name}: reloaded")
            except ReluDeployError as error:
                if now != entry.failed_stamp:
                    entry.failed_stamp, entry.retry_seconds = now, RETRY_SECONDS[0]
                    lines.append(f"{name}: changed on disk, but cannot be loaded: {error.message}; the old version stays in use")
                entry.retry_at = time.monotonic() + entry.retry_seconds
                entry.retry_seconds = min(2 * entry.retry_seconds, RETRY_SECONDS[1])
        return lines

    async def close(self) -> None:
        """Answer all accepted requests and end all sessions."""
        self._trials.stop()
        for entry in self._entries.values():
            if entry.model is not None:
                self._end(entry.model)
                entry.model, entry.reason = None, "the server is shutting down"
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
