"""Measures time on the GPU separately from copies, kernel launches and Python.

    run       GPU time of one run: CUDA events around groups of runs in a queue that is never empty, divided by their number
    single    host time from one call until the stream is synchronized, with the data on the GPU
    enqueue   host time of the call alone; if it is not shorter than `run`, the queue runs empty and launches limit the throughput
    upload    host time of copying NumPy arrays to the GPU through page-locked memory
    download  host time of copying outputs on the GPU to NumPy arrays

Runs rotate through several sets of buffers on the GPU, so that the input of a run is not in a cache.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from relu_deploy.backends.base import DeviceSession, IoBinding
from relu_deploy.backends.nvidia.cuda import Device, Event
from relu_deploy.benchmark.gpu_telemetry import GpuWatch, energy_per_image, summary
from relu_deploy.errors import ReluDeployError
from relu_deploy.tensors import Feeds

__all__ = ["DeviceMeter"]

#: GPU time of a group of runs between two events, so that the few microseconds of a launch are below 0.1% of it
GROUP_MS = 20.0
MOST_RUNS = 4096
#: groups in the queue: the GPU has work while the host waits for an earlier group
AHEAD = 2
#: the board's energy counter is updated about every 0.1 s
ENERGY_SECONDS = 1.5


class DeviceMeter:
    """Measures one session on the GPU."""

    def __init__(self, session: DeviceSession, feeds: Sequence[Feeds], index: int, gpu: Device | None = None) -> None:
        """Bind a set of buffers for each of `feeds`, or as many as fit.

        Args:
            session: The session to measure.
            feeds: Inputs to rotate through, all of the same shapes.
            index: Index of the GPU.
            gpu: The GPU, by default that with `index`.

        Raises:
            ReluDeployError: If the first set of buffers cannot be bound.
        """
        self.gpu = gpu or Device(index)
        self.feeds = feeds
        self.bounds: list[IoBinding] = []
        before = self.gpu.free_bytes()
        for one in feeds:
            try:
                bound = session.bind(one)
            except ReluDeployError:
                if not self.bounds:
                    raise
                break  # not enough memory for a large batch: rotate through fewer sets
            # Runs on several streams overlap, so events on one of them would not cover all runs.
            if self.bounds and bound.stream != self.bounds[0].stream:
                bound.close()
                break
            bound.upload(one)
            bound.run()
            bound.download()
            self.bounds.append(bound)
        self.memory_bytes = max(0, before - self.gpu.free_bytes())
        self.stream = self.bounds[0].stream
        self._turn: Iterator[IoBinding] = itertools.cycle(self.bounds)
        self.watch = GpuWatch(self.gpu.bus_id())
        self.group = self._group_size()

    def _enqueue(self, count: int) -> None:
        for bound in itertools.islice(self._turn, count):
            bound.run()

    def _group_size(self) -> int:
        """Return the number of runs that take `GROUP_MS`, a multiple of the number of sets of buffers."""
        count, took = len(self.bounds), 0.0
        while count < MOST_RUNS:
            with self.gpu.event() as start, self.gpu.event() as end:
                start.record(self.stream)
                self._enqueue(count)
                end.record(self.stream)
                end.synchronize()
                took = end.milliseconds_since(start)
            if took >= GROUP_MS / 4:
                break
            count *= 4
        sets = len(self.bounds)
        needed = math.ceil(count * GROUP_MS / max(took, 1e-3) / sets) * sets
        return max(sets, min(needed, MOST_RUNS))

    def measure(self, seconds: float) -> dict[str, list[float]]:
        """Return times in milliseconds by kind, measured for about `seconds` in total."""
        with self.watch.looking():
            run = self._groups(seconds * 0.5)
        single, enqueue = self._singles(seconds * 0.25)
        upload, download = self._copies(seconds * 0.25)
        return {"run": run, "single": single, "enqueue": enqueue, "upload": upload, "download": download}

    def _groups(self, seconds: float) -> list[float]:
        """Return the GPU time per run in milliseconds, for each group of runs."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        self.gpu.synchronize(self.stream)
        marks: deque[Event] = deque([self._mark()])
        while not times or time.perf_counter() < end:
            self._enqueue(self.group)
            marks.append(self._mark())
            while len(marks) > AHEAD:
                times.append(self._between(marks))
        while len(marks) > 1:
            times.append(self._between(marks))
        marks.pop().close()
        return times

    def _mark(self) -> Event:
        mark = self.gpu.event()
        mark.record(self.stream)
        return mark

    def _between(self, marks: deque[Event]) -> float:
        with marks.popleft() as start:
            marks[0].synchronize()
            return marks[0].milliseconds_since(start) / self.group

    def _singles(self, seconds: float) -> tuple[list[float], list[float]]:
        waits, calls = [], []
        for bound in self._for(seconds):
            start = time.perf_counter_ns()
            bound.run()
            called = time.perf_counter_ns()
            self.gpu.synchronize(self.stream)
            waits.append((time.perf_counter_ns() - start) / 1e6)
            calls.append((called - start) / 1e6)
        return waits, calls

    def _copies(self, seconds: float) -> tuple[list[float], list[float]]:
        up, down = [], []
        for turn, bound in enumerate(self._for(seconds)):
            up.append(self._clocked(lambda bound=bound, turn=turn: bound.upload(self.feeds[turn % len(self.bounds)])))  # type: ignore[misc]
            bound.run()
            self.gpu.synchronize(self.stream)
            down.append(self._clocked(bound.download))
        return up, down

    def _for(self, seconds: float) -> Iterator[IoBinding]:
        """Yield the bindings in rotation for `seconds`, at least one."""
        self.gpu.synchronize(self.stream)
        end = time.perf_counter() + seconds
        for bound in itertools.cycle(self.bounds):
            yield bound
            if time.perf_counter() >= end:
                return

    def _clocked(self, work: Callable[[], Any]) -> float:
        start = time.perf_counter_ns()
        work()
        self.gpu.synchronize(self.stream)
        return (time.perf_counter_ns() - start) / 1e6

    def facts(self, batch: int, seconds: float = ENERGY_SECONDS) -> dict[str, Any]:
        """Return the fields of a row's `device` that describe the GPU.

        Args:
            batch: Rows in one run.
            seconds: Time of the additional runs that measure energy per image.
        """
        before = self.watch.millijoules()
        images = 0
        if before is not None:
            with self.watch.looking():
                images = batch * self.group * len(self._groups(seconds))
        energy = energy_per_image(before, self.watch.millijoules(), images)
        return {
            "rotation": len(self.bounds),
            "runs_per_sample": self.group,
            "memory_bytes": self.memory_bytes,
            "energy_mj_per_image": None if energy is None else round(energy, 4),
            **summary(self.watch),
        }

    def close(self) -> None:
        """Free the buffers."""
        for bound in self.bounds:
            bound.close()
