"""Counts the turns of the Loops and Scans of an evaluation, and ends one that takes minutes.

How often a Loop runs may depend on what is fed, so that it is known only while it runs.
"""

from __future__ import annotations

import time

from relu_deploy.errors import InputError, TooLong
from relu_deploy.run_limit import ALLOW_MORE, runs_are_limited

__all__ = ["LoopTurns"]

#: turns of all Loops together from which on their time counts: a body that takes long by itself is the model's own work
FREE_TURNS = 10_000
#: seconds of processor time that all turns of an evaluation may take: `verify` evaluates a graph about eight times
MOST_SECONDS = 5.0
#: seconds that fewer turns may take: nobody waits for longer without having said so
MOST_SECONDS_OF_FEW = 600.0


class LoopTurns:
    """The turns of one evaluation so far.

    Args:
        most: Turns that one Loop may take, None for any number.
        seconds: Seconds that more than `FREE_TURNS` turns may take where Loops are limited, `MOST_SECONDS` by default.
    """

    def __init__(self, most: int | None = None, seconds: float | None = None) -> None:
        self._most, self._seconds = most, MOST_SECONDS if seconds is None else seconds
        self._count, self._started = 0, 0.0

    def begin(self, operator: str, name: str, turn: int) -> None:
        """Note that a turn begins.

        Args:
            operator: "Loop" or "Scan".
            name: Name of the node.
            turn: How many turns of this run of the node came before.

        Raises:
            InputError: If the node has taken as many turns as it may.
            TooLong: If all together have taken too long, and runs are limited.
        """
        if self._most is not None and turn >= self._most:
            raise InputError(f"{operator} {name!r} has not ended after {turn} iterations", "check its condition and trip count")
        if self._count == 0:
            self._started = time.thread_time()
        self._count += 1
        if not runs_are_limited():
            return
        seconds = time.thread_time() - self._started
        if seconds > (self._seconds if self._count >= FREE_TURNS else MOST_SECONDS_OF_FEW):
            raise TooLong(
                f"the reference evaluator has run the bodies of Loops {self._count:,} times in {seconds:.1f} s, the last that of "
                f"{name!r}, and they have not ended",
                ALLOW_MORE,
            )
