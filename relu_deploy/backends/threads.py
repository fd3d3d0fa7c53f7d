"""Default number of CPU threads of a session, from the container's quota, the CPU affinity and the processor.

It is `ORT_INTRA_OP_NUM_THREADS` or `OMP_NUM_THREADS` if one is set, otherwise the smallest of the control group's quota
(`docker run --cpus 2`), the number of CPUs that this process may run on, and the number of their physical cores. Two threads on
one core share its vector units, and threads beyond a quota are throttled for the rest of each period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relu_deploy.records import JsonRecord

__all__ = [
    "VARIABLES",
    "ThreadCount",
    "allowed_cpus",
    "alternative_counts",
    "cpu_quota",
    "default_threads",
    "find_threads",
    "limited_blas",
]

#: environment variables that set the number of threads of every runtime in a process, in order of precedence
VARIABLES = ("ORT_INTRA_OP_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class ThreadCount(JsonRecord):
    """A number of threads and its origin, such as "set by OMP_NUM_THREADS"."""

    count: int
    source: str

    def __str__(self) -> str:
        return f"{self.count}, {self.source}"


def default_threads() -> int:
    """Return the number of CPU threads that a session gets if none is given."""
    return find_threads().count


@contextmanager
def limited_blas(threads: int) -> Iterator[None]:
    """Let the BLAS library of NumPy use at most `threads` CPU threads in the whole process inside the block.

    By default it takes every CPU and knows no quota, and its idle threads spin: beside other threads that compute, half of the
    processor time is lost. Blocks must not overlap in several threads, because each restores what it found.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads, user_api="blas"):
        yield


def find_threads(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> ThreadCount:
    """Return the number of CPU threads that a session gets if none is given, and its origin.

    Args:
        root: Root of the file system.
        environment: The environment variables, by default those of this process.
    """
    environment = os.environ if environment is None else environment
    for name in VARIABLES:
        # OpenMP accepts a list with one number for each level of nesting.
        first = environment.get(name, "").partition(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return ThreadCount(int(first), f"set by {name}")
    cpus = allowed_cpus()
    found = [ThreadCount(len(cpus), "the CPUs that this process may run on")]
    if cores := _cores(root, cpus):
        found.append(ThreadCount(cores, "the physical cores that this process may run on"))
    if (quota := cpu_quota(root)) is not None:
        # Rounded down: one more thread would be throttled for most of each period.
        found.append(ThreadCount(max(1, int(quota)), f"the CPU quota of the container, {quota:g}"))
    return min(found, key=lambda each: each.count)


def alternative_counts() -> list[int]:
    """Return numbers of CPU threads that may be faster than the default: one, for small models, and every CPU within the quota."""
    quota = cpu_quota()
    most = len(allowed_cpus()) if quota is None else min(len(allowed_cpus()), max(1, int(quota)))
    return sorted({1, most} - {default_threads()})


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process in CPUs, such as 1.5; None if there is no limit.

    Reads `cpu.max` (control groups v2) and `cpu.cfs_quota_us` (v1) of the process's group and of all its ancestors.

    Args:
        root: Root of the file system.
    """
    limits = [limit for folder in _group_folders(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def allowed_cpus() -> list[int]:
    """Return the indices of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cores(root: Path, cpus: list[int]) -> int:
    """Return the number of physical cores that `cpus` belong to, 0 if the system does not report them."""
    cores = set()
    for cpu in cpus:
        siblings = _text(root / "sys" / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        if not siblings:
            return 0
        cores.add(siblings)
    return len(cores)


def _group_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process's CPU time, innermost first."""
    top = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [top] if not controllers else [top / controllers, top / "cpu"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            # In a container the path may be that of the host; then only its last folder is visible, as the mount itself.
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])


def _limit(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    try:
        microseconds, whole = int(quota), int(period)
    except ValueError:  # "max", or no such file
        return None
    return microseconds / whole if microseconds > 0 and whole > 0 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
