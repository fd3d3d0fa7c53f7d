"""Blocks that take too long are ended, also in a process that was forked while one was watched."""

from __future__ import annotations

import os
import threading

import pytest

from relu_deploy.run_limit import ended_after


def ends(seconds: float, within: float) -> bool:
    """Return whether a block that lasts until it is ended, or for `within` seconds, is ended."""
    over = threading.Event()
    with ended_after(seconds, over.set):
        return over.wait(within)


def test_a_block_is_ended_when_its_time_is_over_and_not_before() -> None:
    assert ends(0.1, 20)
    assert not ends(60, 0.6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: run it on Linux or macOS")
def test_a_forked_process_ends_its_own_blocks_and_not_those_of_its_parent() -> None:
    ended_in_child = threading.Event()
    assert ends(0.1, 20)  # the watching thread runs
    with ended_after(0.3, ended_in_child.set):
        child = os.fork()
        if child == 0:
            # The thread of the parent does not exist here.
            passed = ends(0.6, 20) and not ended_in_child.is_set()
            os._exit(0 if passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
