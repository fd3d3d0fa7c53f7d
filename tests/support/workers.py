"""How pytest-xdist's workers share a machine and the tests. Without pytest-xdist nothing here changes a run."""

from __future__ import annotations

import os

import pytest

__all__ = ["group", "take_share_of_processors", "worker_count"]

#: a worker imports torch and onnxruntime: about 2 GiB each when all tests have run
MOST_WORKERS = 4


def worker_count() -> int:
    """Return how many workers `-n auto` starts: one a processor that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, available)


def take_share_of_processors() -> None:
    """Keep a worker to its share of the processors, before NumPy and torch start as many threads as they see processors.

    Workers whose threads wait for each other on the same processors take many times as long.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if not worker or count == 1:
        return
    if not hasattr(os, "sched_setaffinity"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
        return
    processors = sorted(os.sched_getaffinity(0))
    index = int(worker.removeprefix("gw")) % count
    os.sched_setaffinity(0, processors[index::count] or {processors[index % len(processors)]})


def group(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, because they share fixtures, and put the slow ones first.

    Each test of a module with `SPREAD = True` may run on any worker: these share nothing.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow = {_file(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not _is_spread(item), _file(item) not in slow))
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid if _is_spread(item) else _file(item)))


def _is_spread(item: pytest.Item) -> bool:
    return getattr(getattr(item, "module", None), "SPREAD", False)


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
