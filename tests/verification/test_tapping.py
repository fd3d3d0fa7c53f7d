"""Tapping Relus: as deployed where the runtime allows it, and never one session for each Relu in vain."""

from types import SimpleNamespace

import numpy as np
import pytest

from relu_deploy.verification import tapping

RELUS = [SimpleNamespace(output=f"relu{index}") for index in range(40)]


class FusingRuntime:
    """A runtime whose output changes if any of certain tensors is tapped."""

    def __init__(self, disturbing):
        self.disturbing, self.groups = set(disturbing), []

    def load(self, bundle, backend, taps, **options):
        self.groups.append(taps)
        tapped = {relu.output for relu in taps}
        changed = bool(tapped & self.disturbing)
        answers = {"y": np.float32([1 + changed]), **{name: np.float32([len(tapped)]) for name in tapped}}
        return SimpleNamespace(run=lambda feeds: answers, close=lambda: None)


@pytest.fixture
def tap(monkeypatch):
    def run(disturbing):
        runtime = FusingRuntime(disturbing)
        monkeypatch.setattr(tapping, "load", runtime.load)
        plan = SimpleNamespace(bundle=None, options={}, feeds={})
        return tapping.tap_relus(plan, "fusing", RELUS, {"y": np.float32([1])}, {}), runtime

    return run


def test_a_runtime_that_no_tap_changes_is_read_in_one_session(tap):
    found, _ = tap([])
    assert found.sessions == 1
    assert found.as_deployed == {relu.output for relu in RELUS}
    assert not found.together


def test_a_runtime_that_every_tap_changes_is_read_whole_in_a_few_sessions(tap):
    found, runtime = tap(relu.output for relu in RELUS)
    assert found.sessions == len(runtime.groups) == tapping.PATIENCE
    assert found.values.keys() == {relu.output for relu in RELUS}
    assert not found.as_deployed
    # Each Relu is read in the smallest group that it was tapped in, and those of groups that could be smaller are named.
    smallest = {relu.output: min(len(group) for group in runtime.groups if relu in group) for relu in RELUS}
    assert {name: int(value[0]) for name, value in found.values.items()} == smallest
    assert found.together == {name for name, size in smallest.items() if size > 1}


@pytest.mark.parametrize("disturbing", [["relu7"], ["relu0", "relu39"], ["relu3", "relu4", "relu21"]])
def test_the_relus_that_change_a_runtime_are_singled_out(tap, disturbing):
    found, _ = tap(disturbing)
    assert found.as_deployed == {relu.output for relu in RELUS} - set(disturbing)
    assert not found.together
