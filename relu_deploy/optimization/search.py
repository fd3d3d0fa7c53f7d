"""Find the fewest segments that have to return to float32 for a variant to pass its accuracy gate.

Which ones: each segment is tried alone in the low precision, everything else in float32, and costs what the outputs then
differ from the float32 model's on a few rows. The costliest return first: one, two, four … until the gate is passed, then
the count is halved in between. That takes some ten evaluations of accuracy instead of one for each set of segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.data.datasets import Dataset, spread_evenly
from relu_deploy.optimization.gate import AccuracyEvaluator, answers_of, distance
from relu_deploy.optimization.recipes import PrecisionRecipe
from relu_deploy.optimization.targets import Target
from relu_deploy.tasks.metrics import Metric

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SearchResult", "SearchStep", "find_passing"]

#: rows on which a segment's cost is measured: a continuous difference needs few
ROWS_FOR_COST = 16


@dataclass(frozen=True)
class SearchStep:
    """One candidate: how many segments were in float32, and the accuracy metric."""

    float_segments: int
    metric: Metric
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return {"float_segments": self.float_segments, "value": round(self.metric.value, 6), "passed": self.passed}


@dataclass(frozen=True)
class SearchResult:
    """The result of the search. off: segments in float32, costliest first. costs: of each segment, as far as they were measured.

    passed: whether anything passes; else `off`, `model` and `metric` are of the first try.
    """

    passed: bool
    off: Sequence[str]
    model: ir.Model
    metric: Metric
    curve: Sequence[SearchStep]
    costs: Sequence[tuple[str, float]]


def find_passing(
    recipe: PrecisionRecipe,
    evaluator: AccuracyEvaluator,
    target: Target,
    float32: ir.Model,
    max_drop: float,
    threads: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Return the variant with the fewest segments of `recipe` in float32 that loses at most `max_drop` of the evaluator's metric.

    float32: the model whose answers a segment's cost is measured against.
    """
    curve: list[SearchStep] = []
    models: dict[int, tuple[ir.Model, Metric]] = {}
    order: list[str] = []
    costs: list[tuple[str, float]] = []

    def passes(count: int) -> bool:
        progress(f"accuracy with {count} of {len(recipe.segments)} segments in float32" if count else "accuracy")
        model = recipe.build(order[:count])
        with target.session(model, threads=threads) as session:
            metric = evaluator.score(session.run)
        passed = evaluator.before.value - metric.value <= max_drop
        curve.append(SearchStep(count, metric, passed))
        models[count] = model, metric
        return passed

    if passes(0):
        return SearchResult(True, (), *models[0], curve, costs)
    # With every segment in float32 it would pass, but would no longer be in the requested precision.
    most = len(recipe.segments) - 1
    if most < 1:
        return SearchResult(False, (), *models[0], curve, costs)
    costs = _costs(recipe, evaluator, target, float32, threads, progress)
    order += [name for name, _ in costs]
    failed, count = 0, 1
    while not passes(count):
        if count == most:
            return SearchResult(False, (), *models[0], curve, costs)
        failed, count = count, min(2 * count, most)
    while count - failed > 1:
        middle = (failed + count) // 2
        failed, count = (failed, middle) if passes(middle) else (middle, count)
    return SearchResult(True, order[:count], *models[count], curve, costs)


def _costs(
    recipe: PrecisionRecipe,
    evaluator: AccuracyEvaluator,
    target: Target,
    float32: ir.Model,
    threads: int,
    progress: Callable[[str], None],
) -> list[tuple[str, float]]:
    """Return each segment and its cost, costliest first."""
    few: Dataset = evaluator.dataset.picked(spread_evenly(len(evaluator.dataset), ROWS_FOR_COST))
    with target.session(float32, threads=threads) as session:
        true = answers_of(session.run, few, evaluator.batch)
    costs = []
    segments = recipe.segments
    for index, segment in enumerate(segments):
        progress(f"cost of segment {index + 1} of {len(segments)}")
        with target.session(recipe.build([one for one in segments if one != segment]), threads=threads) as session:
            costs.append((segment, distance(answers_of(session.run, few, evaluator.batch), true)))
    return sorted(costs, key=lambda pair: -pair[1])
