"""How many times faster a variant is: both sessions take turns in one process, on the same inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from relu_deploy.backends import Session
from relu_deploy.latency_stats import Ratio, ratio_of
from relu_deploy.tensors import Feeds

__all__ = ["speedup"]

ROUNDS = 10
#: of measuring, for both sides together
SECONDS = 4.0


def speedup(faster: Session, slower: Session, feeds: Sequence[Feeds]) -> Ratio:
    """Return how many times faster `faster` answers than `slower`, in ten interleaved rounds of `SECONDS` in all.

    feeds: several, which take turns. Each round times both sides for the same time; the order alternates.
    """
    sides: tuple[list[list[float]], list[list[float]]] = ([], [])
    sessions = (faster, slower)
    for session in sessions:
        _timed(session, feeds, SECONDS / ROUNDS)
    for turn in range(ROUNDS):
        for side in (0, 1) if turn % 2 else (1, 0):
            sides[side].append(_timed(sessions[side], feeds, SECONDS / ROUNDS / 2))
    return ratio_of(sides[0], sides[1])


def _timed(session: Session, feeds: Sequence[Feeds], seconds: float) -> list[float]:
    timings: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        for one in feeds:
            start = time.perf_counter()
            session.run(one)
            timings.append((time.perf_counter() - start) * 1e3)
            if time.perf_counter() >= end:
                return timings
