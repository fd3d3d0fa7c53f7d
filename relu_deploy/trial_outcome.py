"""The exit codes of a process that only tries whether work can be done, which another process then does."""

from __future__ import annotations

import os
from collections.abc import Callable

from relu_deploy.errors import TooLong
from relu_deploy.run_limit import end_overdue_runs, limited_runs

__all__ = ["OUT_OF_MEMORY", "OVERDUE", "outcome_of"]

#: without enough memory for the work, and with a graph that takes too long
OUT_OF_MEMORY, OVERDUE = 90, 91


def outcome_of(work: Callable[[], object], limited: bool) -> int:
    """Do `work`, which may end this process, and return its exit code. limited: whether runs of a graph are limited.

    Any other error is no outcome: it comes again where the work is done in earnest.
    """
    end_overdue_runs(lambda _: os._exit(OVERDUE))
    try:
        with limited_runs(limited):
            work()
    except MemoryError:
        return OUT_OF_MEMORY
    except TooLong:
        return OVERDUE
    except Exception:  # whatever a runtime raises
        return 0
    return 0
