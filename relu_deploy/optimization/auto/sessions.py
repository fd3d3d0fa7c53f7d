"""The sessions of candidates, in worker processes: one for each backend and precision, so that a crash affects only that pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relu_deploy.errors import Unsupported
from relu_deploy.optimization.auto.candidates import Candidate
from relu_deploy.worker_process import WorkerProcess

__all__ = ["LEAD", "CandidateSessions"]

MODULE = "relu_deploy.optimization.auto.worker"
#: seconds of untimed runs before the timed ones: idle threads of ONNX Runtime spin for some 50 ms after its last run, and would
#: share the processor with the next candidate
LEAD = 0.06


class CandidateSessions:
    """Loads, times and frees the sessions of candidates."""

    def __init__(self, graphs: Mapping[str, Path], feeds: Sequence[Path], threads: int, fixed: Mapping[str, Any]) -> None:
        """Start no process yet.

        Args:
            graphs: The graph of each precision.
            feeds: .npz files of inputs.
            threads: CPU threads of candidates that set no other number.
            fixed: Fields of `backends.Options` for every candidate.
        """
        self._graphs, self._feeds, self._threads, self._fixed = graphs, [str(file) for file in feeds], threads, fixed
        self._processes: dict[Candidate, WorkerProcess] = {}
        self._loaded: dict[Candidate, set[Candidate]] = {}
        self._preparing: set[Candidate] = set()

    def start(self, candidates: Sequence[Candidate]) -> None:
        """Start the processes of candidates, which import their runtimes concurrently."""
        for base in dict.fromkeys(candidate.base for candidate in candidates):
            if base not in self._processes:
                self._processes[base], self._loaded[base] = WorkerProcess(MODULE, self._threads), set()
                self._processes[base].send("prepare", backend=base.backend)
                self._preparing.add(base)

    def load(self, candidate: Candidate) -> float:
        """Load a candidate and warm it up. Return the milliseconds of a run.

        Raises:
            Unsupported: If it cannot be loaded or run; the message has the reason.
        """
        base = candidate.base
        self.start([candidate])
        settings = {"threads": self._threads, **self._fixed, **candidate.settings}
        model = str(self._graphs[candidate.graph])
        reply = self._request(candidate, "load", model=model, backend=candidate.backend, settings=settings, feeds=self._feeds)
        self._loaded[base].add(candidate)
        return float(reply["milliseconds"])

    def measure(self, candidate: Candidate, seconds: float) -> list[float]:
        """Return the milliseconds of the runs of a candidate for `seconds`. Raises Unsupported if it fails."""
        milliseconds: list[float] = self._request(candidate, "measure", seconds=seconds, lead=LEAD)["milliseconds"]
        return milliseconds

    def free(self, candidate: Candidate) -> None:
        """Free the session of a candidate, and end its process if it has no other."""
        base = candidate.base
        loaded = self._loaded.get(base, set())
        if candidate in loaded:
            loaded.remove(candidate)
            if loaded:
                self._processes[base].request("close", key=str(candidate))
        if not loaded and base in self._processes:
            self._processes.pop(base).close()

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def _request(self, candidate: Candidate, command: str, **arguments: Any) -> dict[str, Any]:
        process = self._processes.get(candidate.base)
        if process is None:
            raise Unsupported("its process ended while another candidate ran")
        if candidate.base in self._preparing:
            self._preparing.remove(candidate.base)
            # A runtime that cannot be imported is reported when the model is loaded.
            process.receive("prepare")
        reply = process.request(command, key=str(candidate), **arguments)
        if "error" in reply:
            raise Unsupported(reply["error"], reply["hint"])
        return reply
