"""Lets a process that was started to do part of the work of another end with it, also where that one is killed."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["end_with_parent"]

#: number of the option of `prctl` that sets the signal for the death of the parent
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> bool:
    """Let the system kill this process when the thread that started it ends. Only Linux can.

    Args:
        parent: Number of the process that started this one.

    Returns:
        False if that process has ended already.
    """
    import ctypes

    # Windows has no library without a name, other systems have no such function.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, getattr(signal, "SIGKILL", 0))
    return os.getppid() == parent
