"""How long each layer of a runtime takes, as the runtime's own profiler reports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Feeds

__all__ = ["WARM_UP_RUNS", "LayerTime", "LayerTimes", "run_in_turn"]

#: runs at the start whose times do not count: they allocate memory
WARM_UP_RUNS = 3
#: counted runs, however long they take, and at most
LEAST_RUNS, MOST_RUNS = 5, 500


@dataclass(frozen=True)
class LayerTime(JsonRecord):
    """The time of one layer of a runtime, which may compute several nodes of the graph.

    Attributes:
        name: The runtime's name of the layer.
        kernel: Type of the kernel.
        nodes: Names of the graph's nodes that it computes, as far as the runtime reports them; empty for a layer that the
            runtime added, such as a change of the memory layout.
        milliseconds: Mean time in a run.
        precision: Precision of its result, "" for integers or where it is not reported.
    """

    name: str
    kernel: str
    nodes: tuple[str, ...]
    milliseconds: float
    precision: str = ""


@dataclass(frozen=True)
class LayerTimes:
    """The times of all layers that ran.

    Attributes:
        layers: In the order in which they run.
        runs: Number of runs that the means were taken over.
        call_milliseconds: Mean time of one call of `Session.run` meanwhile, with the cost of profiling.
    """

    layers: Sequence[LayerTime]
    runs: int
    call_milliseconds: float


def run_in_turn(run: Callable[[Mapping[str, Any]], Any], feeds: Sequence[Feeds], seconds: float) -> tuple[int, float]:
    """Call `run` with `feeds` in turn: `WARM_UP_RUNS` times, then for about `seconds`.

    Returns:
        The number of counted runs, and their mean time in milliseconds.
    """
    turns = cycle(feeds)
    for _ in range(WARM_UP_RUNS):
        run(next(turns))
    count, started = 0, time.perf_counter()
    while count < LEAST_RUNS or (count < MOST_RUNS and time.perf_counter() - started < seconds):
        run(next(turns))
        count += 1
    return count, 1e3 * (time.perf_counter() - started) / count
