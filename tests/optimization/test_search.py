"""The search for the segments that have to be in float32, and for the calibration method."""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from relu_deploy.data.datasets import Dataset
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.recipes import Quantized
from relu_deploy.optimization.search import CandidateRunner, best_method, find_passing
from relu_deploy.tasks.metrics import Metric

ROWS = np.linspace(1, 2, 40, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)


@dataclass
class ArithmeticTarget:
    """Runs "models" that are numbers: the error that is added to the first column. Counts its sessions."""

    sessions: int = 0

    @contextmanager
    def session(self, model, **_):
        self.sessions += 1

        def run(feeds):
            answer = feeds["x"].copy()
            answer[:, 0] += model
            return {"y": answer}

        yield SimpleNamespace(run=run)


@dataclass(frozen=True)
class AdditiveRecipe:
    """Segments that each add an error unless they are in float32."""

    errors: dict = field(default_factory=dict)

    @property
    def segments(self):
        return list(self.errors)

    def build(self, off=()):
        return sum(error for name, error in self.errors.items() if name not in off)

    def float_nodes(self, off=()):
        return {}


def runner_of(target, rows=ROWS):
    dataset = Dataset("rows", {"x": rows}, {})
    evaluator = AccuracyEvaluator({}, dataset, 8, Metric("signal", 1.0, len(rows)), {"y": rows})
    return CandidateRunner(evaluator, target, 0.0)


def test_the_two_segments_with_the_errors_are_found_without_measuring_all():
    errors = {f"s{index}": 1e-4 for index in range(64)} | {"s11": 5.0, "s40": 3.0}
    target = ArithmeticTarget()
    result = find_passing(AdditiveRecipe(errors), runner_of(target), 0.01)
    assert result.passed
    assert set(result.off) == {"s11", "s40"}
    assert result.off[0] == "s11"
    # Two searches of 2·log2(64) measurements, a few of accuracy, and one of the float32 model; each segment alone would be 64.
    assert target.sessions <= 32


def test_the_fewest_segments_that_pass_are_returned_to_float32():
    errors = {f"s{index}": 1.0 if index < 5 else 0.0 for index in range(16)}
    result = find_passing(AdditiveRecipe(errors), runner_of(ArithmeticTarget()), 1e-6)
    assert result.passed
    assert set(result.off) == {"s0", "s1", "s2", "s3", "s4"}
    assert len(result.off) == 5


def test_a_broken_segment_comes_first_and_its_error_is_infinite():
    errors = {"a": 0.5, "b": float("nan"), "c": 0.1, "d": 0.0}
    result = find_passing(AdditiveRecipe(errors), runner_of(ArithmeticTarget()), 0.01)
    assert result.costs[0] == ("b", float("inf"))


def test_nothing_passes_when_even_the_last_segment_is_too_much():
    result = find_passing(AdditiveRecipe(dict.fromkeys("abcd", 5.0)), runner_of(ArithmeticTarget()), 0.01)
    assert not result.passed
    assert result.off == ()
    assert [step.float_segments for step in result.curve] == [0, 1, 2, 3]


@pytest.mark.parametrize("best", ["mse", "minmax", "percentile"])
def test_the_calibration_method_with_the_smallest_loss_is_kept(best, monkeypatch):
    monkeypatch.setattr(Quantized, "build", lambda self, off=(): 0.0 if self.method == best else 1.0)
    recipe = Quantized(None, "int8", "cpu", {})
    chosen, candidate = best_method(recipe, runner_of(ArithmeticTarget()))
    assert chosen == replace(recipe, method=best)
    assert candidate.model == 0.0
    assert candidate.metric.value == 1.0


def test_the_candidate_of_the_best_method_is_not_measured_again(monkeypatch):
    monkeypatch.setattr(Quantized, "build", lambda self, off=(): 0.0)
    target = ArithmeticTarget()
    chosen, candidate = best_method(Quantized(None, "int8", "cpu", {}), runner_of(target))
    # One session for the float32 answers and one for each of the three methods.
    assert target.sessions == 4
    monkeypatch.setattr(Quantized, "segments", ["a", "b"])
    result = find_passing(chosen, runner_of(target), 0.01, first=candidate)
    assert target.sessions == 4
    assert result.passed
    assert result.metric == candidate.metric


@pytest.mark.parametrize("rows", [16, 40])
def test_the_answers_that_come_with_the_accuracy_are_those_of_a_run_of_their_own(rows):
    runner = runner_of(ArithmeticTarget(), ROWS[:rows])
    candidate, answers = runner.measure_with_answers(0.25)
    assert candidate == runner.measure(0.25)
    assert len(answers["y"]) == 16
    np.testing.assert_array_equal(answers["y"], runner.answers(0.25)["y"])


@pytest.mark.parametrize(("flops", "rows"), [(0, 16), (10**9, 16), (2 * 10**10, 10), (10**12, 4)])
def test_the_errors_of_groups_are_measured_on_fewer_rows_where_a_row_takes_many_operations(flops, rows):
    runner = replace(runner_of(ArithmeticTarget()), flops=flops)
    assert len(runner.answers(0.0)["y"]) == rows
