"""Counts and durations of one model's requests, in the terms of Triton's statistics and metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

__all__ = ["BUCKETS", "PARTS", "Duration", "Statistics", "StatisticsSnapshot", "Timings"]

#: upper bounds of the buckets of the latency histogram, in seconds
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


#: of a request's time, in order
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Timings:
    """Where one request's time went, in seconds.

    Attributes:
        queue: Waiting in the queue.
        compute_input: Until its input was ready.
        compute_infer: In the model.
        compute_output: Until its output was ready.
        arrived: When it was queued, of time.perf_counter().
        rows: Of the run that it was in.
    """

    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float
    arrived: float = 0.0
    rows: int = 0


class Duration:
    """A count and a sum of seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self.count += times
        self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * 1e9)}


@dataclass(frozen=True)
class StatisticsSnapshot:
    """A consistent copy of one model's counts.

    Attributes:
        success: Answered requests.
        inferences: Their rows.
        executions: Runs of the model.
        durations: Seconds, by Triton's names.
        failures: Failed requests by reason.
        buckets: Answered requests by `BUCKETS`; the last one is beyond them all.
        batches: Runs by number of rows.
        loads: Loads by result.
    """

    success: int
    inferences: int
    executions: int
    durations: dict[str, float]
    failures: dict[str, int]
    buckets: tuple[int, ...]
    batches: dict[int, int]
    loads: dict[str, int]


class Statistics:
    """Counts of one model, across reloads. Safe to use from its batch thread and the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.success, self.fail, self.queue = Duration(), Duration(), Duration()
        self.compute_input, self.compute_infer, self.compute_output = Duration(), Duration(), Duration()
        self.inferences = self.executions = self.pending = 0
        self.failures: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.batches: dict[int, tuple[Duration, Duration, Duration]] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.last_inference_ms = 0

    def ran(self, rows: int, compute_input: float, compute_infer: float, compute_output: float) -> None:
        """Count one run of the model on `rows` rows."""
        with self._lock:
            self.executions += 1
            sizes = self.batches.setdefault(rows, (Duration(), Duration(), Duration()))
            for duration, seconds in zip(sizes, (compute_input, compute_infer, compute_output), strict=True):
                duration.add(seconds)

    def succeeded(self, seconds: float, rows: int, timings: Timings | None) -> None:
        """Count one answered request that took `seconds` from its arrival."""
        with self._lock:
            self.inferences += rows
            self.last_inference_ms = int(time.time() * 1000)
            self.success.add(seconds)
            self.buckets[next((index for index, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))] += 1
            if timings is not None:
                self.queue.add(timings.queue)
                self.compute_input.add(timings.compute_input)
                self.compute_infer.add(timings.compute_infer)
                self.compute_output.add(timings.compute_output)

    def failed(self, seconds: float, reason: str) -> None:
        """Count one accepted request that ended in an error; reason: for instance late, failed, cancelled."""
        with self._lock:
            self.fail.add(seconds)
            self.failures[reason] += 1

    def refused(self) -> None:
        """Count one request that was refused because the queue was full."""
        with self._lock:
            self.fail.add(0.0)
            self.failures["refused"] += 1

    def loaded(self, result: str) -> None:
        """Count one load of the model; result: "loaded" or "failed"."""
        with self._lock:
            self.loads[result] += 1

    def snapshot(self) -> StatisticsSnapshot:
        """Return a consistent copy of the counts."""
        with self._lock:
            return StatisticsSnapshot(
                self.success.count,
                self.inferences,
                self.executions,
                {"request": self.success.seconds} | {name: getattr(self, name).seconds for name in PARTS},
                dict(self.failures),
                tuple(self.buckets),
                {rows: each[0].count for rows, each in self.batches.items()},
                dict(self.loads),
            )

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """Return the entry of `/v2/models/NAME/stats`."""
        with self._lock:
            return {
                "name": name,
                "version": version,
                "last_inference": self.last_inference_ms,
                "inference_count": self.inferences,
                "execution_count": self.executions,
                "inference_stats": {
                    "success": self.success.to_json(),
                    "fail": self.fail.to_json(),
                    "queue": self.queue.to_json(),
                    "compute_input": self.compute_input.to_json(),
                    "compute_infer": self.compute_infer.to_json(),
                    "compute_output": self.compute_output.to_json(),
                    "cache_hit": {"count": 0, "ns": 0},
                    "cache_miss": {"count": 0, "ns": 0},
                },
                "batch_stats": [
                    {
                        "batch_size": rows,
                        "compute_input": each[0].to_json(),
                        "compute_infer": each[1].to_json(),
                        "compute_output": each[2].to_json(),
                    }
                    for rows, each in sorted(self.batches.items())
                ],
            }
