"""The processes of benchmark rows, each a copy of one that has imported the runtime of its backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relu_deploy.backends import capabilities
from relu_deploy.worker_process import WorkerProcess

__all__ = ["Process", "RowProcesses"]


class Process(WorkerProcess):
    """A process that runs `relu_deploy.benchmark.worker`."""

    def __init__(self, threads: int) -> None:
        """Start a worker whose numerical libraries use `threads` CPU threads."""
        super().__init__("relu_deploy.benchmark.worker", threads)


class RowProcesses:
    """Starts the process of each row.

    Importing a runtime takes up to seconds, and each row of each model has a process of its own. So one process for each backend
    imports the runtime, and rows get copies of it. Drivers of GPUs do not work in a copy: rows on GPUs import the runtime anew.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        """Start no process yet.

        Args:
            threads: CPU threads of the numerical libraries.
            folder: A folder that only this user can write to, for sockets.
        """
        self._threads, self._folder = threads, folder
        #: processes that import a runtime or have imported it, the next one last
        self._waiting: dict[str, list[Process]] = {}
        self._importing: set[Process] = set()

    def import_runtimes(self, backends: Sequence[str]) -> None:
        """Start importing the runtimes for a row on each of `backends`, concurrently, and return without waiting."""
        for backend in dict.fromkeys(backends):
            waiting = self._waiting.setdefault(backend, [])
            count = backends.count(backend) if capabilities(backend).on_gpu else 1
            waiting += [self._import(backend) for _ in range(count - len(waiting))]

    def start(self, backend: str) -> WorkerProcess:
        """Return a process that has imported the runtime of `backend`."""
        waiting = self._waiting.setdefault(backend, [])
        process = waiting.pop() if waiting else self._import(backend)
        if process in self._importing:
            process.receive("prepare")
            self._importing.remove(process)
        if capabilities(backend).on_gpu or (copy := process.fork(self._folder)) is None:
            return process
        waiting.append(process)
        return copy

    def close(self) -> None:
        """End the processes that no row has taken."""
        for process in (process for waiting in self._waiting.values() for process in waiting):
            process.close()
        self._waiting.clear()

    def _import(self, backend: str) -> Process:
        process = Process(self._threads)
        process.send("prepare", backend=backend)
        self._importing.add(process)
        return process
