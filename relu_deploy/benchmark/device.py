"""Time on the GPU itself, separate from copies, launching and Python.

    run       GPU time of one run: CUDA events around groups of runs in a queue that is never empty, divided by their number
    single    what a lone caller waits for with the data on the GPU already: host clock, from the call until the stream is done
    enqueue   host time of the call alone; where it is no shorter than `run`, the queue runs dry and launching is what is measured
    upload    host clock, from NumPy arrays until they are on the GPU, through page-locked memory
    download  host clock, from outputs on the GPU to NumPy arrays

Inputs take turns among several sets of buffers that stay on the GPU, so that no run finds its own input in a cache.
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

#: GPU time of a group of runs between two events: a launch into an empty queue, some microseconds, is then below 0.1%
GROUP_MS = 20.0
MOST_RUNS = 4096
#: groups that are in the queue at once: the GPU has work while the host waits for the group before last
AHEAD = 2
#: the board's energy counter moves every tenth of a second or so
ENERGY_SECONDS = 1.5


class DeviceMeter:
    """Measures one session that can keep its data on the GPU."""

    def __init__(self, session: DeviceSession, feeds: Sequence[Feeds], index: int, gpu: Device | None = None) -> None:
        """feeds: the inputs that take turns. Raises what `bind` raises when not even one set of buffers fits."""
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
                break  # a large batch: fewer sets of buffers take turns
            # Runs on several streams overlap, and no event on one of them sees all.
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
        """Return how many runs make a group: as many as take `GROUP_MS`, each set of buffers the same number of times."""
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
        """Return milliseconds of each kind, measured for about `seconds` in all."""
        with self.watch.looking():
            run = self._groups(seconds * 0.5)
        single, enqueue = self._singles(seconds * 0.25)
        upload, download = self._copies(seconds * 0.25)
        return {"run": run, "single": single, "enqueue": enqueue, "upload": upload, "download": download}

    def _groups(self, seconds: float) -> list[float]:
        """Return for each group of runs the GPU's milliseconds for one run."""
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
        """Yield the bounds in turn, from the first on, for `seconds` and at least once."""
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
        """Return what the GPU did in all of the measuring, and the energy of an image in `seconds` of runs on end."""
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
        for bound in self.bounds:
            bound.close()
