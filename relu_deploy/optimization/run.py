"""A variant of a model for one target: small and fast, and as right as the gate demands, or none at all.

    model.onnx ─► prepared float32 graph ─► calibrated on data ─► recipe of the precision ─► gate ─► verified ─► stored

The prepared graph has its batch norms folded and, where asked for, channels that never act removed and the ranges of
neighboring layers equalized; all of it leaves the answers as they were, and that is checked. A variant is stored only
when its accuracy passes; what it costs to let fewer nodes be coarse is searched for, and shown.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle, refuse_existing
from relu_deploy.errors import AccuracyTooLow, InputError, Unsupported, UsageError, nearest
from relu_deploy.graph import save_model
from relu_deploy.latency_stats import Ratio
from relu_deploy.optimization.calibration import METHODS
from relu_deploy.optimization.evaluation_data import Evidence, gather
from relu_deploy.optimization.gate import AccuracyEvaluator
from relu_deploy.optimization.prepare import Prepared, prepare
from relu_deploy.optimization.recipes import Casts, Float32, PrecisionRecipe, Quantized
from relu_deploy.optimization.search import SearchResult, find_passing
from relu_deploy.optimization.speed import speedup
from relu_deploy.optimization.store import store
from relu_deploy.optimization.targets import PRECISIONS, TARGETS, Target, find_target
from relu_deploy.tasks.metrics import Metric
from relu_deploy.verification.run import VerifyReport, verify

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OptimizeOptions", "OptimizeReport", "optimize", "optimize_bundle"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class OptimizeOptions:
    """What can be chosen. calibration, data: as for `load_dataset`; None takes what the bundle knows.

    samples: rows to calibrate on. eval_samples: most rows to measure accuracy on; None takes all. max_drop: of the gate's
    metric; None takes the metric's own limit. method: one of `calibrate.METHODS`. per_channel: weights have a scale for each
    output channel. equalize: None does it where weights have one scale only. correct_biases: for the mean error of quantized
    weights. compact: remove channels that provably never act; allow_observed: and those that never did on the data.
    """

    calibration: str | os.PathLike[str] | None = None
    data: str | os.PathLike[str] | None = None
    samples: int = 128
    eval_samples: int | None = None
    max_drop: float | None = None
    method: str = "mse"
    per_channel: bool = True
    equalize: bool | None = None
    correct_biases: bool = True
    weight_bits: int | None = None
    compact: bool = False
    allow_observed: bool = False
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True)
class OptimizeReport:
    """One variant and what it was found to be. bundle: None when the gate was missed and nothing was stored.

    speed: how many times faster than the float32 model, None where the target is not at hand. simulated: it was tried out in
    float32 arithmetic, see `targets`. precisions_tried: name → why it is not the one, for `auto`.
    """

    model: str
    target: Target
    precision: str
    found: SearchResult
    before: Metric
    max_drop: float
    evidence: Evidence
    prepared: Prepared
    fallbacks: Sequence[dict[str, str]]
    verified: VerifyReport | None
    speed: Ratio | None
    bytes_before: int
    bytes_after: int
    seconds: float
    bundle: Bundle | None = None
    tried: Sequence[dict[str, Any]] = ()

    @property
    def variant(self) -> str:
        return f"{self.precision}-{self.target.name}"

    @property
    def passed(self) -> bool:
        return self.found.passed and (self.verified is None or self.verified.passed)

    @property
    def drop(self) -> float:
        return self.before.value - self.found.metric.value

    def to_json(self) -> dict[str, Any]:
        checked = self.verified.backends[0] if self.verified else None
        return {
            "schema": "relu-deploy/optimize/1",
            "model": self.model,
            "target": self.target.name,
            "precision": self.precision,
            "passed": self.passed,
            "variant": self.variant,
            "file": None if self.bundle is None else str(self.bundle.with_variant(self.variant).onnx),
            "accuracy": {
                "metric": self.before.name,
                "before": round(self.before.value, 6),
                "after": round(self.found.metric.value, 6),
                "drop": round(self.drop, 6),
                "max_drop": self.max_drop,
                "samples": self.before.samples,
                "simulated": not self.target.measurable,
            },
            "speedup": None if self.speed is None else round(self.speed.value, 4),
            "speedup_ci95": None if self.speed is None or self.speed.ci95 is None else [round(x, 4) for x in self.speed.ci95],
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "fallbacks": list(self.fallbacks),
            "curve": [step.to_json() for step in self.found.curve],
            "costs": [{"segment": name, "relative_error": cost} for name, cost in self.found.costs],
            "verified": None
            if checked is None
            else {
                "passed": checked.passed,
                "relus": len(checked.relus),
                "relus_passed": sum(bool(relu.passed) for relu in checked.relus),
                "largest_ratio": max((one.comparison.error_ratio for one in checked.relus if one.comparison), default=None),
                "first_divergence": checked.first_divergence,
                "reason": next((fields["reason"] for one in checked.relus if (fields := one.to_json())["passed"] is False), ""),
            },
            "evidence": self.evidence.to_json(),
            "prepared": self.prepared.to_json(),
            "tried": list(self.tried),
            "seconds": round(self.seconds, 3),
        }


def optimize(
    bundle: Bundle | str | os.PathLike[str],
    target: str = "cpu",
    precision: str = "auto",
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> Bundle:
    """Return `bundle` with a variant for `target` added to it; with `out`, a copy of it there.

    target: "cpu", "cuda", "tensorrt" or "tensorrt-rtx". precision: "fp32", "fp16", "bf16", "int8", "fp8", or "auto" for the
    fastest that passes. settings: the fields of `OptimizeOptions`. force: replace what exists.
    Raises AccuracyTooLow when nothing passes the gate, UsageError and InputError for bad arguments and data; then nothing
    is stored.
    """
    report = optimize_bundle(
        bundle, target, precision, out=out, force=force, progress=progress, settings=OptimizeOptions(**settings)
    )
    if report.bundle is None:
        raise AccuracyTooLow(
            f"{report.variant} of {report.model} was not stored: {_why_not(report)}",
            "allow more with max_drop, calibrate on data that look more like the real ones, or take a wider precision",
        )
    return report.bundle


def _why_not(report: OptimizeReport) -> str:
    if report.found.passed:
        return "its Relus are not what the float32 graph gives, by more than its precision explains"
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
    settings: OptimizeOptions | None = None,
) -> OptimizeReport:
    """Return what `optimize` found, stored where it passed. Arguments and errors as there, but a missed gate is no error."""
    settings = settings or OptimizeOptions()
    _check(settings)
    wanted = find_target(target)
    precisions = _precisions(wanted, precision)
    bundle = Bundle.open(bundle)
    if bundle.variant:
        raise UsageError(f"{bundle.onnx} is a variant already", f"optimize the model itself: {bundle.path}")
    if out is None and not bundle.is_folder:
        raise UsageError(f"{bundle.path} is a plain ONNX file: say where the bundle goes", "with -o OUT")
    if out is not None and Path(out).resolve() != bundle.path.resolve():
        refuse_existing(Path(out), force)
    else:
        for name in precisions:
            _refuse_variant(bundle, f"{name}-{wanted.name}", force)
    started = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relu-deploy-optimize-")))
        progress("preparing the float32 graph")
        evidence = gather(bundle, settings, data_needed=any(name in ("int8", "fp8") for name in precisions))
        prepared = prepare(bundle, wanted, precisions, settings, evidence, progress)
        prepared = replace(prepared, path=folder / "prepared.onnx")
        save_model(prepared.model, prepared.path)
        with TARGETS["cpu"].session(prepared.original, threads=settings.threads) as session:
            judge = AccuracyEvaluator.prepare(bundle, evidence.judged_on, session.run, evidence.batch)
        reports = [_try(bundle, wanted, name, settings, evidence, prepared, judge, progress) for name in precisions]
        best = _fastest(reports)
        best = replace(best, seconds=time.perf_counter() - started, tried=[_tried(one) for one in reports])
        if best.passed:
            progress("storing")
            best = replace(best, bundle=store(bundle, best, out, force))
    return best


def _check(settings: OptimizeOptions) -> None:
    """Raise UsageError for choices that make no sense, before anything is read."""
    if settings.max_drop is not None and not 0 <= settings.max_drop <= 1:
        raise UsageError(f"--max-drop must be between 0 and 1, not {settings.max_drop:g}", "0.005 is half a point of accuracy")
    if settings.method not in METHODS:
        raise UsageError(f"there is no calibration method {settings.method!r}", nearest(settings.method, METHODS))
    if settings.weight_bits not in (None, 7, 8):
        raise UsageError(f"--weight-bits must be 7 or 8, not {settings.weight_bits}", "7 is for x86 processors without VNNI")
    if settings.allow_observed and not settings.compact:
        raise UsageError("--allow-observed goes with --compact", "add --compact")


def _precisions(target: Target, precision: str) -> list[str]:
    if precision == "auto":
        if not target.measurable:
            raise Unsupported(
                f"the fastest precision for {target.name} can only be found where it runs, and this version measures on cpu only",
                f"name one with --precision: {', '.join(target.precisions)}",
            )
        return list(reversed(target.precisions))
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", f"one of: auto, {', '.join(PRECISIONS)}")
    target.require(precision)
    return [precision]


def _refuse_variant(bundle: Bundle, name: str, force: bool) -> None:
    if name in bundle.manifest.get("variants", {}) and not force:
        raise InputError(f"{bundle.path} already has the variant {name}", "replace it with --force, or write a copy with -o OUT")


def _try(
    bundle: Bundle,
    target: Target,
    precision: str,
    settings: OptimizeOptions,
    evidence: Evidence,
    prepared: Prepared,
    judge: AccuracyEvaluator,
    progress: Progress,
) -> OptimizeReport:
    """Return the report on one precision, not stored yet."""
    recipe = _recipe(target, precision, settings, evidence, prepared)
    max_drop = judge.max_drop if settings.max_drop is None else settings.max_drop
    if precision in ("int8", "fp8") and not recipe.segments:
        raise InputError(
            f"{bundle.name} has no node that {precision} could be used for", "take --precision fp16, or fp32 to leave it as it is"
        )

    def say(line: str) -> None:
        progress(f"{precision}: {line}")

    found = find_passing(recipe, judge, target, prepared.model, max_drop, settings.threads, say)
    verified, speed = None, None
    if found.passed:
        say("verifying every Relu")
        verified = _verified(target, found.model, prepared.path, evidence, settings)
        if target.measurable and verified.passed:
            say("measuring the speed")
            speed = _speed(target, found.model, prepared.original, evidence, settings)
    nodes = {str(node.name): node.op_type for node in prepared.model.graph}
    segments = prepared.segments
    back = {name: "accuracy" for name, segment in segments.items() if segment in found.off}
    reasons = {**back, **recipe.float_nodes(found.off)}
    fallbacks = [
        {"node": name, "operator": nodes[name], "precision": "float32", "reason": why, "segment": segments[name]}
        for name, why in reasons.items()
        if name in nodes
    ]
    return OptimizeReport(
        bundle.name,
        target,
        precision,
        found,
        judge.before,
        max_drop,
        evidence,
        prepared,
        fallbacks,
        verified,
        speed,
        bundle.onnx.stat().st_size,
        _size(found.model),
        0.0,
    )


def _recipe(target: Target, precision: str, settings: OptimizeOptions, evidence: Evidence, prepared: Prepared) -> PrecisionRecipe:
    if precision == "fp32":
        return Float32(prepared.model)
    if precision in ("fp16", "bf16"):
        return Casts(prepared.model, precision, prepared.keep(PRECISIONS[precision]))
    bits = settings.weight_bits or evidence.weight_bits if target.name == "cpu" else 8
    return Quantized(
        prepared.model,
        precision,
        target.placement,
        prepared.statistics,
        settings.method,
        settings.per_channel,
        settings.correct_biases,
        bits,
    )


def _verified(target: Target, model: ir.Model, against: Path, evidence: Evidence, settings: OptimizeOptions) -> VerifyReport:
    """Return the comparison of every Relu of the variant with the prepared float32 graph, on one row of the data."""
    with target.trial(model) as (bundle, options):
        return verify(
            bundle, ["onnxruntime-cpu"], feeds=evidence.one_row, against=str(against), threads=settings.threads, **options
        )


def _speed(target: Target, model: ir.Model, float32: ir.Model, evidence: Evidence, settings: OptimizeOptions) -> Ratio:
    with (
        target.session(model, threads=settings.threads) as faster,
        target.session(float32, threads=settings.threads) as slower,
    ):
        return speedup(faster, slower, evidence.some_rows)


def _fastest(reports: Sequence[OptimizeReport]) -> OptimizeReport:
    """Return the fastest that passes, among those that pass without a measured speed the first; else the first."""
    passing = [report for report in reports if report.passed]
    return max(passing, key=lambda report: report.speed.value if report.speed else 0.0, default=reports[0])


def _tried(report: OptimizeReport) -> dict[str, Any]:
    return {
        "precision": report.precision,
        "passed": report.passed,
        "value": round(report.found.metric.value, 6),
        "speedup": None if report.speed is None else round(report.speed.value, 4),
    }


def _size(model: ir.Model) -> int:
    """Return the bytes of the weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)
