"""Builds the variant of one precision for a target, checks it, and measures its speed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.quantization.qdq_placement import WEIGHTED
from relu_deploy.latency_stats import Ratio
from relu_deploy.optimization.accuracy.calibration import DEFAULT_METHOD, WHOLE_RANGE
from relu_deploy.optimization.accuracy.confidence import confidence_to_json
from relu_deploy.optimization.accuracy.evaluation_data import EvaluationData
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.accuracy.sensitivity import SensitivityList
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.prepare import Prepared
from relu_deploy.optimization.recipes import Casts, PrecisionRecipe, Quantized, Unchanged
from relu_deploy.optimization.report import OptimizeReport
from relu_deploy.optimization.search import Candidate, CandidateRunner, SearchResult, best_method, find_passing, segment_costs
from relu_deploy.optimization.speed import speedup
from relu_deploy.optimization.targets import PRECISIONS, Target
from relu_deploy.verification.run import VerifyReport, verify

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FoundVariant", "VariantBuilder"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class FoundVariant:
    """A variant that the search found, not verified yet.

    Attributes:
        precision: Its precision, as an option.
        recipe: What wrote it.
        search: The graph, its accuracy, and the segments in float32.
        instead_of: The calibration method with which a Relu differs, "" where the first one was kept.
    """

    precision: str
    recipe: PrecisionRecipe
    search: SearchResult
    instead_of: str = ""


@dataclass(frozen=True)
class VariantBuilder:
    """Builds and measures one variant for each precision, all from the same prepared graph and data."""

    bundle: Bundle
    target: Target
    options: OptimizeOptions
    data: EvaluationData
    prepared: Prepared
    evaluator: AccuracyEvaluator
    force: bool = False

    @property
    def max_drop(self) -> float:
        """The largest accepted loss of the accuracy metric."""
        return self.evaluator.max_drop if self.options.max_drop is None else self.options.max_drop

    def build(self, precision: str, progress: Progress) -> OptimizeReport:
        """Return the report on one precision, not stored yet."""
        found = self.find(precision, progress)
        verified, speed = None, None
        if found.search.passed:
            progress(f"{precision}: verifying every Relu")
            verified = self._verify(found.search.model)
            if not verified.passed:
                found, verified = self._without_clipping(found, verified, progress)
            if self.options.measure_speed and self.target.measurable and verified.passed and not self.prepared.is_quantized:
                progress(f"{precision}: measuring the speed")
                speed = self._speed(found.search.model)
        return self.report(found, verified, speed)

    def find(self, precision: str, progress: Progress) -> FoundVariant:
        """Return the variant of one precision with the fewest segments in float32 that passes the gate.

        Raises:
            InputError: If the model has no node that could be in that precision.
        """

        def on_step(line: str) -> None:
            progress(f"{precision}: {line}")

        recipe, first = self._recipe(precision, on_step)
        pairs = precision in ("int8", "fp8")
        lowers = recipe.converts if isinstance(recipe, Casts) else bool(recipe.segments) or not pairs
        if not lowers and not self.prepared.is_quantized:
            inside = any(path for _, path in iterate_nodes(self.prepared.model))
            raise InputError(
                f"{self.bundle.name} has no node that {precision} could be used for"
                + (": those inside bodies of If, Loop and Scan stay float32" if inside else ""),
                f"use --precision {' or '.join(self._precisions_without_pairs() if pairs else ['fp32'])}",
            )
        return FoundVariant(precision, recipe, self._search(recipe, precision, on_step, first))

    def _without_clipping(
        self, found: FoundVariant, verified: VerifyReport, progress: Progress
    ) -> tuple[FoundVariant, VerifyReport]:
        """Return a variant that covers the whole range of every tensor, with its comparison, if that one passes; else `found`.

        Args:
            found: A variant that differs at a Relu.
            verified: Its comparison.
            progress: Called with one line for each step.
        """
        recipe = found.recipe
        if self.options.method is not None or found.precision == "fp8" or not isinstance(recipe, Quantized):
            return found, verified

        def on_step(line: str) -> None:
            progress(f"{found.precision} with {WHOLE_RANGE}: {line}")

        whole = replace(recipe, method=WHOLE_RANGE)
        search = self._search(whole, found.precision, on_step, None)
        if search.passed:
            on_step("verifying every Relu")
            again = self._verify(search.model)
            if again.passed:
                return FoundVariant(found.precision, whole, search, instead_of=recipe.method), again
        return found, verified

    def _precisions_without_pairs(self) -> list[str]:
        """Return the target's precisions that need no node of 8 bits, the narrowest first."""
        return [name for name in reversed(self.target.precisions) if name not in ("int8", "fp8")]

    def find_placed(self, found: FoundVariant, placement: str, progress: Progress) -> FoundVariant | None:
        """Return a variant like `found` whose Q/DQ pairs are placed for other kernels.

        Args:
            found: An 8-bit variant.
            placement: Rules of `graph.quantization.qdq_placement`.
            progress: Called with one line for each step.

        Returns:
            The variant, None if `found` was not quantized here.
        """
        if not isinstance(found.recipe, Quantized):
            return None

        def on_step(line: str) -> None:
            progress(f"{found.precision} for {placement}: {line}")

        recipe = replace(found.recipe, placement=placement)
        return FoundVariant(found.precision, recipe, self._search(recipe, found.precision, on_step, None))

    def report(self, found: FoundVariant, verified: VerifyReport | None, speed: Ratio | None) -> OptimizeReport:
        """Return the report on a variant, not stored yet."""
        search = found.search
        return OptimizeReport(
            model=self.bundle.name,
            target=self.target,
            precision=found.precision,
            search=search,
            before=self.evaluator.before,
            compared=self.evaluator.compared.shown_names,
            selected_by=self.evaluator.selected_by,
            max_drop=self.max_drop,
            confidence=confidence_to_json(
                None if self.evaluator.meter is None else self.evaluator.meter.before,
                search.confidence,
                self.options.score_threshold,
                self.options.max_confidence_shift,
            ),
            data=self.data,
            prepared=self.prepared,
            fallbacks=self._fallbacks(found.recipe, search.off),
            verified=verified,
            speed=speed,
            bytes_before=self.bundle.onnx.stat().st_size,
            bytes_after=_size(search.model),
            seconds=0.0,
            method=found.recipe.method if isinstance(found.recipe, Quantized) else "",
            instead_of=found.instead_of,
            method_is_given=self.options.method is not None,
        )

    def _search(self, recipe: PrecisionRecipe, precision: str, on_step: Progress, first: Candidate | None) -> SearchResult:
        """Return the result of the search, which starts from the sensitivity list where there is one.

        first: The candidate without float32 segments, where it was measured already.
        """
        runner, options = self.runner(on_step), self.options
        limits = self.max_drop, options.max_confidence_shift
        if options.sensitivity is None:
            return find_passing(recipe, runner, *limits, first=first)
        sensitivity = SensitivityList(Path(options.sensitivity), self.bundle, self.target.name, precision)
        if self.force or not sensitivity.path.exists():
            sensitivity.write(sorted(segment_costs(recipe, runner), key=lambda each: -each[1]), self.data.measured_on.name)
        return find_passing(recipe, runner, *limits, sensitivity.read(recipe.segments), first)

    def _recipe(self, precision: str, progress: Progress) -> tuple[PrecisionRecipe, Candidate | None]:
        """Return the recipe, and its candidate where the choice of the method has measured it."""
        prepared, options = self.prepared, self.options
        if precision == "fp32":
            return Unchanged(prepared.model), None
        if precision in ("fp16", "bf16"):
            kept = {**self._behind_selection(), **prepared.keep(PRECISIONS[precision]), **prepared.excluded}
            return Casts(prepared.model, precision, kept), None
        if prepared.is_quantized:
            return Unchanged(prepared.model), None
        recipe = Quantized(
            prepared.model,
            precision,
            self.target.placement,
            prepared.statistics,
            DEFAULT_METHOD if options.method in (None, "auto") else options.method,
            options.per_channel,
            options.correct_biases,
            options.weight_bits or self.data.weight_bits if self.target.adds_pairs else 8,
            {**self._behind_selection(WEIGHTED), **prepared.excluded},
        )
        # The range of a float8 tensor is the whole one with every method.
        if options.method != "auto" or precision == "fp8" or not recipe.segments:
            return recipe, None
        return best_method(recipe, self.runner(progress))

    def _behind_selection(self, operators: Collection[str] | None = None) -> dict[str, str]:
        """Return the nodes whose error accuracy would not show, because what enters a selection before them is measured.

        operators: Their operators; None for any.
        """
        behind = set(self.evaluator.compared.behind)
        return {
            str(node.name): "it follows the selection, and accuracy is measured before it"
            for node in self.prepared.model.graph
            if node.name in behind and (operators is None or node.op_type in operators)
        }

    def runner(self, progress: Progress) -> CandidateRunner:
        """Return what runs candidates of the search."""
        prepared = self.prepared
        flops = prepared.cost.get("flops_after", 0)
        return CandidateRunner(self.evaluator, self.target, prepared.model, self.options.threads, progress, flops)

    def _fallbacks(self, recipe: PrecisionRecipe, off: Sequence[str]) -> list[dict[str, str]]:
        """Return the nodes that stay float32, each with its operator, reason and segment."""
        nodes = {str(node.name): node.op_type for node, _ in iterate_nodes(self.prepared.model)}
        segments = self.prepared.segments
        if self.prepared.retargeting is not None:
            reasons = dict(self.prepared.retargeting.float_nodes)
            return [
                {
                    "node": name,
                    "operator": nodes[name],
                    "precision": "float32",
                    "reason": why,
                    "segment": segments.get(name, name),
                }
                for name, why in reasons.items()
            ]
        reasons = {name: "accuracy" for name, segment in segments.items() if segment in off} | recipe.float_nodes(off)
        return [
            {"node": name, "operator": nodes[name], "precision": "float32", "reason": why, "segment": segments.get(name, name)}
            for name, why in reasons.items()
            if name in nodes
        ]

    def _verify(self, model: ir.Model) -> VerifyReport:
        """Return the comparison of every Relu of the variant with the prepared float32 graph, on one row of the data."""
        with self.target.as_bundle(model) as (bundle, runtime_options):
            return verify(
                bundle,
                ["onnxruntime-cpu"],
                feeds=self.data.one_row,
                against=str(self.prepared.path),
                threads=self.options.threads,
                accept=self.options.accept,
                **runtime_options,
            )

    def _speed(self, model: ir.Model) -> Ratio:
        with (
            self.target.session(model, threads=self.options.threads) as faster,
            self.target.session(self.prepared.original, threads=self.options.threads) as slower,
        ):
            return speedup(faster, slower, self.data.some_rows)


def _size(model: ir.Model) -> int:
    """Return the bytes of the weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)
