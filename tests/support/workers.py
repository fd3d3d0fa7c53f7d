"""How pytest-xdist's workers share a machine and the tests. Without pytest-xdist nothing here changes a run."""

from __future__ import annotations

import os

import pytest

__all__ = ["SPREAD", "create_scheduling", "put_slow_first", "take_share_of_processors", "worker_count"]

#: files whose tests share nothing and take long, so that each may run on any worker
SPREAD = ("docs/test_pages.py",)

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


def put_slow_first(items: list[pytest.Item]) -> None:
    """Let workers begin with what takes longest, so that they end at about the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {_file(item.nodeid) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not _is_spread(item.nodeid), _file(item.nodeid) not in slow))


def create_scheduling(config: pytest.Config, log: object) -> object:
    """Return the scheduling that keeps the tests of a file on one worker, because they share fixtures, except those of `SPREAD`.

    pytest-xdist's own `--dist loadgroup` has no effect with pytest 9.2: it renames tests, which that no longer allows.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _is_spread(nodeid) else _file(nodeid)

    config.option.loadscopereorder = False
    return FileScheduling(config, log)


def _is_spread(nodeid: str) -> bool:
    return _file(nodeid).endswith(SPREAD)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]
