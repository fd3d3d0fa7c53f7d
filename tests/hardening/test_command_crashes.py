"""Commands that are killed, or refused by the system, in the middle of a write: the bundle is whole and nothing is left over.

A sample of the points that `benchmarks/hardening.py crashes` tries; `tests/test_bundle_crashes.py` tries every call of each writer.
"""

import random

import pytest
from crash_points import COMMANDS, ERRORS, CrashTrials
from processes import can_fork

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux: run this there")

#: the others take seconds each: `benchmarks/hardening.py crashes` has all of them
TESTED = ("export over", "verify", "package over")


@pytest.mark.parametrize("command", TESTED)
def test_a_command_interrupted_anywhere_leaves_a_bundle_that_opens_and_no_files(tmp_path, command):
    assert command in COMMANDS
    trials = CrashTrials(command, tmp_path)
    assert trials.calls >= 10
    draw = random.Random(command)
    points = [trials.at_call(number) for number in draw.sample(range(1, trials.calls + 1), 3)]
    points.append(trials.at_call(draw.randrange(1, trials.calls + 1), draw.choice(ERRORS)))
    points.append(trials.at_moment(draw.uniform(0, trials.seconds)))
    assert [point for point in points if point.faults] == []
    assert {point.code for point in points[:3]} == {-9}
