"""Make a variant of a model for one target, and store it if its accuracy passes the gate.

    model.onnx ─► prepared float32 graph ─► calibration ─► precision recipe ─► accuracy gate ─► verification ─► store

The prepared graph has its batch norms folded and, on request, channels that never act removed and the ranges of neighboring
layers equalized. Where more than folding was done, the prepared graph is compared with the original. When the first try
misses the gate, segments are returned to float32 until it passes (see `search`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle, refuse_existing
from relu_deploy.errors import AccuracyTooLow, InputError, ReluDeployError, Unsupported, UsageError
from relu_deploy.folders import temporary_folder
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.latency_stats import Ratio
from relu_deploy.optimization.calibration import AUTO_METHODS
from relu_deploy.optimization.confidence import confidence_to_json
from relu_deploy.optimization.evaluation_data import EvaluationData, load_evaluation_data
from relu_deploy.optimization.gate import AccuracyEvaluator
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.prepare import Prepared, prepare, trained_precision
from relu_deploy.optimization.recipes import Casts, PrecisionRecipe, Quantized, Unchanged
from relu_deploy.optimization.report import OptimizeReport
from relu_deploy.optimization.search import CandidateRunner, SearchResult, best_method, find_passing, segment_costs
from relu_deploy.optimization.sensitivity import SensitivityList
from relu_deploy.optimization.speed import speedup
from relu_deploy.optimization.store import store
from relu_deploy.optimization.targets import PRECISIONS, TARGETS, Target, find_target
from relu_deploy.verification.run import VerifyReport, verify

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OptimizeOptions", "OptimizeReport", "optimize", "optimize_bundle"]

Progress = Callable[[str], None]


def optimize(
    bundle: Bundle | str | os.PathLike[str],
    target: str = "cpu",
    precision: str = "auto",
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
    **options: Any,
) -> Bundle:
    """Add a variant for `target` to a bundle.

    Args:
        bundle: A bundle, or the path of a bundle or of an ONNX file.
        target: "cpu", "cuda", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "bf16", "int8", "fp8", or "auto" for the fastest that passes.
        out: Folder of the bundle to write; None adds the variant to `bundle` itself.
        force: Replace what exists.
        progress: Called with one line for each step.
        **options: The fields of `OptimizeOptions`.

    Returns:
        The bundle with the variant.

    Raises:
        AccuracyTooLow: If no variant passes the gate. Nothing is stored then.
        UsageError: If an argument is wrong.
        InputError: If the model or the data cannot be used.
    """
    report = optimize_bundle(
        bundle, target, precision, out=out, force=force, progress=progress, options=OptimizeOptions(**options)
    )
    if report.bundle is None:
        raise AccuracyTooLow(
            f"{report.variant} of {report.model} was not stored: {_why_not(report)}",
            "raise max_drop, calibrate on data closer to production, or choose a wider precision",
        )
    return report.bundle


def _why_not(report: OptimizeReport) -> str:
    if report.search.passed:
        return "its Relus differ from the float32 graph's by more than the precision explains"
    shift = report.confidence and report.confidence["shift"]
    if report.drop <= report.max_drop and shift is not None:
        return f"its mean confidence shifts by {shift:+.4g}, {report.confidence['max_shift']:g} is allowed"  # type: ignore[index]
    loses = f"it loses {report.drop:.4g} {report.before.name} on {report.before.samples} rows"
    return f"{loses}, {report.max_drop:g} is allowed"


def optimize_bundle(
    bundle: Bundle | str | os.PathLike[str],
    target: str = "cpu",
    precision: str = "auto",
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
    options: OptimizeOptions | None = None,
    pages: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda _: {},
) -> OptimizeReport:
    """Return the report of `optimize`.

    Arguments and errors are those of `optimize`, except that a missed gate is not an error.

    Args:
        bundle: See `optimize`; so are the other arguments.
        target: See `optimize`.
        precision: See `optimize`.
        out: See `optimize`.
        force: See `optimize`.
        progress: See `optimize`.
        options: The fields that `optimize` takes as keywords.
        pages: Renders the report's JSON object as further files of the bundle. It is called before anything is stored.
    """
    options = options or OptimizeOptions()
    options.check()
    goal = find_target(target)
    bundle = Bundle.open(bundle)
    trained = _trained_precision(bundle)
    precisions = _precisions(goal, trained if trained and precision == "auto" else precision)
    _check_names(options, precision)
    _check_output(bundle, [f"{name}-{goal.name}" for name in precisions], out, force)
    started = time.perf_counter()
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder("optimize"))
        progress("preparing the float32 graph")
        needed = not trained and any(name in ("int8", "fp8") for name in precisions)
        data = load_evaluation_data(bundle, options, data_needed=needed)
        prepared = prepare(bundle, goal, precisions, options, data, progress)
        prepared = replace(prepared, path=folder / "prepared.onnx")
        save_model(prepared.model, prepared.path)
        with TARGETS["cpu"].session(prepared.original, threads=options.threads) as session:
            evaluator = AccuracyEvaluator.prepare(bundle, data.measured_on, session.run, data.batch, options.score_threshold)
        _check_confidence(evaluator, options)
        builder = _VariantBuilder(bundle, goal, options, data, prepared, evaluator, force)
        reports = [builder.build(name, progress) for name in precisions]
        best = _fastest(reports)
        best = replace(best, seconds=time.perf_counter() - started, tried=[report.summary() for report in reports])
        if best.passed:
            progress("storing")
            best = replace(best, bundle=store(bundle, best, out, force, pages(best.to_json())))
    return best


def _check_output(bundle: Bundle, variants: Sequence[str], out: str | os.PathLike[str] | None, force: bool) -> None:
    """Raise UsageError or InputError where the result cannot be written."""
    if bundle.variant:
        raise UsageError(f"{bundle.onnx} is already a variant", f"optimize the model itself: {bundle.path}")
    if out is None and not bundle.is_folder:
        raise UsageError(f"{bundle.path} is a plain ONNX file, so the output bundle needs a path", "add -o OUT")
    if out is not None and Path(out).resolve() != bundle.path.resolve():
        refuse_existing(Path(out), force)
        return
    for name in variants:
        if name in bundle.manifest.get("variants", {}) and not force:
            raise InputError(
                f"{bundle.path} already has the variant {name}", "replace it with --force, or write a copy with -o OUT"
            )


def _precisions(target: Target, precision: str) -> list[str]:
    if precision == "auto":
        target.require_measurable()
        if not target.measurable:
            raise Unsupported(
                f"the fastest precision for {target.name} can only be measured on its own hardware; this version measures on cpu only",
                f"name one with --precision: {', '.join(target.precisions)}",
            )
        return list(reversed(target.precisions))
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", f"one of: auto, {', '.join(PRECISIONS)}")
    target.require(precision)
    return [precision]


def _trained_precision(bundle: Bundle) -> str:
    try:
        return trained_precision(load_model(bundle.onnx))
    except ReluDeployError:
        return ""  # the graph is checked, with a better message, when it is prepared


def _check_names(options: OptimizeOptions, precision: str) -> None:
    if options.exclude and precision == "fp32":
        raise UsageError("--exclude keeps nodes in float32, and --precision fp32 keeps all", "choose another --precision")
    if options.sensitivity is not None and precision in ("auto", "fp32"):
        raise UsageError(
            f"--sensitivity is the list of one precision, not of --precision {precision}",
            "name one, for instance --precision int8",
        )


def _check_confidence(evaluator: AccuracyEvaluator, options: OptimizeOptions) -> None:
    if options.max_confidence_shift is None or (evaluator.meter is not None and evaluator.meter.before is not None):
        return
    task = evaluator.manifest.get("task")
    if task == "detection":
        raise InputError(
            f"--max-confidence-shift: the float32 model finds nothing with a score of {options.score_threshold:g} on these data",
            "lower --score-threshold, or give other data with --data",
        )
    raise UsageError(
        "--max-confidence-shift: the outputs of this model have no confidence",
        "it is measured for classifications, detections (--decode boxes) and segmentations",
    )


@dataclass(frozen=True)
class _VariantBuilder:
    """Builds and measures one variant for each precision, all from the same prepared graph and data."""

    bundle: Bundle
    target: Target
    options: OptimizeOptions
    data: EvaluationData
    prepared: Prepared
    evaluator: AccuracyEvaluator
    force: bool = False

    def build(self, precision: str, progress: Progress) -> OptimizeReport:
        """Return the report on one precision, not stored yet."""
        options, target = self.options, self.target

        def on_step(line: str) -> None:
            progress(f"{precision}: {line}")

        recipe = self._recipe(precision, on_step)
        max_drop = self.evaluator.max_drop if options.max_drop is None else options.max_drop
        if precision in ("int8", "fp8") and not recipe.segments and not self.prepared.is_quantized:
            inside = any(path for _, path in iterate_nodes(self.prepared.model))
            raise InputError(
                f"{self.bundle.name} has no node that {precision} could be used for"
                + (": those inside bodies of If, Loop and Scan stay float32" if inside else ""),
                "use --precision fp16, or fp32 to leave it as it is",
            )

        search = self._search(recipe, precision, max_drop, on_step)
        verified, speed = None, None
        if search.passed:
            on_step("verifying every Relu")
            verified = self._verify(search.model)
            if target.measurable and verified.passed and not self.prepared.is_quantized:
                on_step("measuring the speed")
                speed = self._speed(search.model)
        return OptimizeReport(
            model=self.bundle.name,
            target=target,
            precision=precision,
            search=search,
            before=self.evaluator.before,
            max_drop=max_drop,
            confidence=confidence_to_json(
                None if self.evaluator.meter is None else self.evaluator.meter.before,
                search.confidence,
                options.score_threshold,
                options.max_confidence_shift,
            ),
            data=self.data,
            prepared=self.prepared,
            fallbacks=self._fallbacks(recipe, search.off),
            verified=verified,
            speed=speed,
            bytes_before=self.bundle.onnx.stat().st_size,
            bytes_after=_size(search.model),
            seconds=0.0,
            method=recipe.method if isinstance(recipe, Quantized) else "",
        )

    def _search(self, recipe: PrecisionRecipe, precision: str, max_drop: float, on_step: Progress) -> SearchResult:
        """Return the result of the search, which starts from the sensitivity list where there is one."""
        runner, options = self._runner(on_step), self.options
        if options.sensitivity is None:
            return find_passing(recipe, runner, max_drop, options.max_confidence_shift)
        sensitivity = SensitivityList(Path(options.sensitivity), self.bundle, self.target.name, precision)
        if self.force or not sensitivity.path.exists():
            sensitivity.write(sorted(segment_costs(recipe, runner), key=lambda each: -each[1]), self.data.measured_on.name)
        return find_passing(recipe, runner, max_drop, options.max_confidence_shift, sensitivity.read(recipe.segments))

    def _recipe(self, precision: str, progress: Progress) -> PrecisionRecipe:
        prepared, options = self.prepared, self.options
        if precision == "fp32":
            return Unchanged(prepared.model)
        if precision in ("fp16", "bf16"):
            return Casts(prepared.model, precision, {**prepared.keep(PRECISIONS[precision]), **prepared.excluded})
        if prepared.is_quantized:
            return Unchanged(prepared.model)
        recipe = Quantized(
            prepared.model,
            precision,
            self.target.placement,
            prepared.statistics,
            AUTO_METHODS[0] if options.method == "auto" else options.method,
            options.per_channel,
            options.correct_biases,
            options.weight_bits or self.data.weight_bits if self.target.adds_pairs else 8,
            prepared.excluded,
        )
        # The range of a float8 tensor is the whole one with every method.
        if options.method != "auto" or precision == "fp8" or not recipe.segments:
            return recipe
        return best_method(recipe, self._runner(progress))

    def _runner(self, progress: Progress) -> CandidateRunner:
        return CandidateRunner(self.evaluator, self.target, self.prepared.model, self.options.threads, progress)

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
                **runtime_options,
            )

    def _speed(self, model: ir.Model) -> Ratio:
        with (
            self.target.session(model, threads=self.options.threads) as faster,
            self.target.session(self.prepared.original, threads=self.options.threads) as slower,
        ):
            return speedup(faster, slower, self.data.some_rows)


def _fastest(reports: Sequence[OptimizeReport]) -> OptimizeReport:
    """Return the fastest that passes, among those that pass without a measured speed the first; else the first.

    A variant that is slower than float32 is only returned where there is no other.
    """
    passing = [report for report in reports if report.passed]
    passing = [report for report in passing if not report.is_slower] or passing
    return max(passing, key=lambda report: report.speed.value if report.speed else 0.0, default=reports[0])


def _size(model: ir.Model) -> int:
    """Return the bytes of the weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)
