"""Find the fewest segments that have to return to float32 for a variant to pass its accuracy gate.

The error of a group of segments is what the outputs differ from the float32 model's on a few rows when that group alone is in
the low precision. Starting from all segments, the group with the largest error is halved again and again, so that the costliest
segments are found in some log2(n) measurements each instead of n in all. They return to float32 in that order: one, two, four …
until the gate is passed, then the count is halved in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count as counter
from math import ceil
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import Session
from relu_deploy.data.datasets import spread_evenly
from relu_deploy.optimization.accuracy.calibration import AUTO_METHODS
from relu_deploy.optimization.accuracy.compared_tensors import Run
from relu_deploy.optimization.accuracy.confidence import Confidence
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.recipes import PrecisionRecipe, Quantized
from relu_deploy.optimization.targets import Target
from relu_deploy.tasks.metrics import Metric
from relu_deploy.tensors import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Candidate", "CandidateRunner", "SearchResult", "SearchStep", "best_method", "find_passing", "segment_costs"]

#: rows on which the error of a group is measured, most and fewest: a continuous difference needs few
ROWS_FOR_COST, FEWEST_ROWS = 16, 4
#: floating-point operations of one such measurement, beyond which it takes fewer rows
FLOPS_FOR_COST = 2 * 10**11
#: stands for an infinite error among the groups
BROKEN = 1e300


@dataclass(frozen=True)
class SearchStep:
    """One candidate: how many segments were in float32, the accuracy metric, and the shift of the mean confidence."""

    float_segments: int
    metric: Metric
    passed: bool
    confidence_shift: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "float_segments": self.float_segments,
            "value": round(self.metric.value, 6),
            "passed": self.passed,
            "confidence_shift": None if self.confidence_shift is None else round(self.confidence_shift, 6),
        }


@dataclass(frozen=True)
class SearchResult:
    """The result of the search.

    Attributes:
        passed: Whether a candidate passes; else `off`, `model` and `metric` are those of the first one.
        off: Segments in float32, costliest first.
        model: The candidate.
        metric: Its accuracy.
        curve: All candidates in the order in which they were tried.
        costs: Segments whose error was measured alone, with that error, in the order in which they were found.
        confidence: Its confidence; None where it has none.
    """

    passed: bool
    off: Sequence[str]
    model: ir.Model
    metric: Metric
    curve: Sequence[SearchStep]
    costs: Sequence[tuple[str, float]]
    confidence: Confidence | None = None


@dataclass(frozen=True)
class Candidate:
    """A graph that was run on the data, its accuracy, and its confidence (None where it has none)."""

    model: ir.Model
    metric: Metric
    confidence: Confidence | None = None


@dataclass(frozen=True)
class CandidateRunner:
    """Runs candidates as `target` would, and compares them with the float32 model.

    Attributes:
        evaluator: Measures accuracy.
        target: What the candidates are for.
        float32: The model whose outputs errors are measured against.
        threads: Threads of the runtime.
        progress: Called with one line for each step.
        flops: Floating-point operations of one row; 0 where they are not known.
    """

    evaluator: AccuracyEvaluator
    target: Target
    float32: ir.Model
    threads: int = 0
    progress: Callable[[str], None] = lambda _: None
    flops: int = 0

    @property
    def rows_for_cost(self) -> int:
        """Return on how many rows the error of a group is measured."""
        return min(ROWS_FOR_COST, max(FEWEST_ROWS, FLOPS_FOR_COST // max(1, self.flops)))

    def measure(self, model: ir.Model) -> Candidate:
        """Return `model` with its accuracy and its confidence."""
        with self._session(model) as session:
            return Candidate(model, *self.evaluator.measure(session.run))

    def measure_with_answers(self, model: ir.Model) -> tuple[Candidate, Mapping[str, Array]]:
        """Return what `measure` and `answers` return, with one session, and with one run of the rows where these are all rows."""
        evaluator, kept = self.evaluator, []
        with self._session(model) as session:

            def run(feeds: Feeds) -> Feeds:
                kept.append(session.run(feeds))
                return kept[-1]

            few = len(evaluator.dataset) <= self.rows_for_cost
            candidate = Candidate(model, *evaluator.measure(run if few else session.run))
            once = few and len(kept) == ceil(len(evaluator.dataset) / evaluator.batch)
            results = iter(kept)
            return candidate, self._answers((lambda _: next(results)) if once else session.run)

    def shift(self, confidence: Confidence | None) -> float | None:
        """Return the shift of the mean confidence from the float32 model's, None where there is none."""
        return self.evaluator.shift(confidence)

    def answers(self, model: ir.Model) -> Mapping[str, Array]:
        """Return the outputs of `model` on a few rows."""
        with self._session(model) as session:
            return self._answers(session.run)

    def distance(self, answers: Mapping[str, Array], true: Mapping[str, Array]) -> float:
        """Return the distance of answers from those of the float32 model."""
        return self.evaluator.distance(answers, true)

    def _session(self, model: ir.Model) -> AbstractContextManager[Session]:
        return self.target.session(self.evaluator.exposed(model), threads=self.threads)

    def _answers(self, run: Run) -> Mapping[str, Array]:
        dataset = self.evaluator.dataset
        return self.evaluator.answers_on(run, dataset.picked(spread_evenly(len(dataset), self.rows_for_cost)))


def find_passing(
    recipe: PrecisionRecipe,
    runner: CandidateRunner,
    max_drop: float,
    max_shift: float | None = None,
    known_costs: Sequence[tuple[str, float]] = (),
    first: Candidate | None = None,
) -> SearchResult:
    """Return the variant with the fewest segments of `recipe` in float32 that passes.

    Args:
        recipe: Builds the candidates.
        runner: Runs them.
        max_drop: Largest accepted loss of the accuracy metric.
        max_shift: Largest accepted shift of the mean confidence; None accepts any.
        known_costs: Segments with the errors of an earlier run, costliest first; others are measured after them.
        first: The candidate without float32 segments, where it was measured already.

    Returns:
        The variant that passes, or the one without float32 segments where none does.
    """
    curve: list[SearchStep] = []
    tried: dict[int, Candidate] = {}
    segments = recipe.segments
    costs = [(name, cost) for name, cost in known_costs if name in segments]
    known = {name for name, _ in costs}
    costliest = ((name, cost) for name, cost in segment_costs(recipe, runner) if name not in known)

    def passes(count: int) -> bool:
        while len(costs) < count:
            costs.append(next(costliest))
        if count or first is None:
            runner.progress(f"accuracy with {count} of {len(segments)} segments in float32" if count else "accuracy")
            candidate = runner.measure(recipe.build([name for name, _ in costs[:count]]))
        else:
            candidate = first
        shift = runner.shift(candidate.confidence)
        passed = runner.evaluator.before.value - candidate.metric.value <= max_drop
        passed = passed and (max_shift is None or (shift is not None and abs(shift) <= max_shift))
        curve.append(SearchStep(count, candidate.metric, passed, shift))
        tried[count] = candidate
        return passed

    def result(count: int, *, passed: bool) -> SearchResult:
        chosen = tried[count]
        off = [name for name, _ in costs[:count]]
        return SearchResult(passed, off or (), chosen.model, chosen.metric, curve, costs, chosen.confidence)

    if passes(0):
        return result(0, passed=True)
    # With every segment in float32 it would pass, but would no longer be in the requested precision.
    most = len(segments) - 1
    if most < 1:
        return result(0, passed=False)
    failed, count = 0, 1
    while not passes(count):
        if count == most:
            return result(0, passed=False)
        failed, count = count, min(2 * count, most)
    while count - failed > 1:
        middle = (failed + count) // 2
        failed, count = (failed, middle) if passes(middle) else (middle, count)
    return result(count, passed=True)


def segment_costs(recipe: PrecisionRecipe, runner: CandidateRunner) -> Iterator[tuple[str, float]]:
    """Yield each segment with its error, those with a large error first."""
    segments = recipe.segments
    true = runner.answers(runner.float32)
    serial = counter()
    groups: list[tuple[float, int, list[str]]] = [(float("-inf"), next(serial), segments)]
    while groups:
        cost, _, group = heappop(groups)
        if len(group) == 1 and cost != float("-inf"):
            yield group[0], float("inf") if cost == -BROKEN else -cost
            continue
        middle = (len(group) + 1) // 2
        for half in filter(None, (group[:middle], group[middle:])):
            runner.progress(f"error of {len(half)} of {len(segments)} segments")
            error = runner.distance(runner.answers(recipe.build([name for name in segments if name not in half])), true)
            heappush(groups, (-min(error, BROKEN), next(serial), half))


def best_method(recipe: Quantized, runner: CandidateRunner) -> tuple[Quantized, Candidate]:
    """Return `recipe` with the calibration method of `AUTO_METHODS` that is most accurate, and its candidate.

    Among methods of equal accuracy the one whose outputs are closest to the float32 model's is taken.
    """
    true = runner.answers(runner.float32)
    found: list[tuple[Quantized, Candidate, tuple[float, float]]] = []
    for method in AUTO_METHODS:
        runner.progress(f"accuracy with the calibration method {method}")
        changed = replace(recipe, method=method)
        candidate, answers = runner.measure_with_answers(changed.build())
        found.append((changed, candidate, (candidate.metric.value, -runner.distance(answers, true))))
    best, candidate, _ = max(found, key=lambda each: each[2])
    return best, candidate
