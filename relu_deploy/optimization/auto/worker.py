"""The worker process of candidates: keeps several sessions of one backend and precision, and times them on command."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.backends import Session, load, probe
from relu_deploy.bundle import Bundle
from relu_deploy.tensors import Feeds
from relu_deploy.worker_process import serve

#: shortest warm-up of a session, in runs
WARM_RUNS = 3


class Worker:
    """Executes commands on sessions, each with a key. Each public method is a command and returns the reply."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._feeds: list[Feeds] = []

    def prepare(self, backend: str) -> dict[str, Any]:
        """Import the backend's runtime. Several workers do this concurrently."""
        probe(backend)
        return {}

    def load(self, key: str, model: str, backend: str, settings: Mapping[str, Any], feeds: Sequence[str]) -> dict[str, Any]:
        """Load a model and run it until it is warm. Return the milliseconds of a run.

        Args:
            key: Key of the session.
            model: Path of the graph.
            backend: Name of the backend.
            settings: Fields of `backends.Options`.
            feeds: .npz files with the inputs that runs rotate through.
        """
        if not self._feeds:
            for file in feeds:
                with np.load(file) as archive:
                    arrays = {name: archive[name] for name in archive.files}
                # Arrays of Python strings are stored as arrays of fixed length.
                self._feeds.append(
                    {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()}
                )
        session = self._sessions[key] = load(Bundle.open(model), backend, **settings)
        timings: list[float] = []
        for run in range(WARM_RUNS):
            start = time.perf_counter()
            session.run(self._feeds[run % len(self._feeds)])
            timings.append((time.perf_counter() - start) * 1e3)
        return {"milliseconds": min(timings)}

    def session(self, key: str) -> Session:
        """Return the session with that key."""
        return self._sessions[key]

    def measure(self, key: str, seconds: float, lead: float) -> dict[str, Any]:
        """Return the times of runs for `seconds` in milliseconds, after untimed runs for `lead` seconds, at least one."""
        run, timings = self._sessions[key].run, []
        end = time.perf_counter() + lead
        run(self._feeds[-1])
        while time.perf_counter() < end:
            run(self._feeds[-1])
        end = time.perf_counter() + seconds
        while True:
            for feeds in self._feeds:
                start = time.perf_counter()
                run(feeds)
                stop = time.perf_counter()
                timings.append((stop - start) * 1e3)
                if stop >= end:
                    return {"milliseconds": timings}

    def close(self, key: str) -> dict[str, Any]:
        """Free a session."""
        self._sessions.pop(key).close()
        return {}


if __name__ == "__main__":
    serve(Worker())
