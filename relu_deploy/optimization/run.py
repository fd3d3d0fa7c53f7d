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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle, refuse_existing
from relu_deploy.data.rows_of_runs import rows_that_run
from relu_deploy.errors import AccuracyTooLow, InputError, ReluDeployError, UsageError
from relu_deploy.graph import read_model, save_model
from relu_deploy.optimization.accuracy.compared_tensors import ComparedTensors
from relu_deploy.optimization.accuracy.evaluation_data import load_evaluation_data
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.accuracy.sensitivity import SensitivityList
from relu_deploy.optimization.auto.candidates import AUTOCAST
from relu_deploy.optimization.auto.run import find_fastest
from relu_deploy.optimization.build import VariantBuilder
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.prepare import prepare, trained_precision
from relu_deploy.optimization.report import OptimizeReport
from relu_deploy.optimization.store import store
from relu_deploy.optimization.targets import PRECISIONS, TARGETS, Target, find_target
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Feeds
from relu_deploy.verification.judging.noise import rounded_numbers

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
            report.remedy
            if report.selected_by and not report.compared
            else "raise max_drop, calibrate on data closer to production, or choose a wider precision",
        )
    return report.bundle


def _why_not(report: OptimizeReport) -> str:
    if report.auto is not None:
        reasons = [f"{one.backend} {one.precision}".strip() + f": {one.reason}" for one in report.auto.candidates]
        return f"no candidate passes: {'; '.join(reasons)}"
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
    # A model that was trained in 8 bits is taken as it is.
    searched = precision == "auto" and not trained
    _check_names(options, precision)
    _check_output(bundle, [f"{name}-{goal.name}" for name in precisions], out, force)
    if options.sensitivity is not None and Path(options.sensitivity).exists() and not force:
        # A wrong file is an error before the data are read.
        SensitivityList(Path(options.sensitivity), bundle, goal.name, precisions[0]).read(())
    started = time.perf_counter()
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder("optimize"))
        progress("preparing the float32 graph")
        needed = not trained and any(name in ("int8", "fp8") for name in precisions)
        data = load_evaluation_data(bundle, options, data_needed=needed)
        data = replace(data, batch=rows_that_run(bundle, data.measured_on, partial(_run, bundle, options.threads), data.batch))
        # A runtime that casts a float32 graph needs no other graph.
        prepared = prepare(bundle, goal, [name for name in precisions if name in goal.precisions], options, data, progress)
        prepared = replace(prepared, path=folder / "prepared.onnx")
        save_model(prepared.model, prepared.path)
        compared = ComparedTensors.find(prepared.original, prepared.model, rounded_numbers(prepared.original))
        with TARGETS["cpu"].session(compared.expose(prepared.original), threads=options.threads) as session:
            evaluator = AccuracyEvaluator.prepare(
                bundle, data.measured_on, session.run, data.batch, options.score_threshold, compared
            )
        _check_confidence(evaluator, options)
        builder = VariantBuilder(bundle, goal, options, data, prepared, evaluator, force)
        if searched:
            best = find_fastest(builder, precisions, progress)
        else:
            reports = [builder.build(name, progress) for name in precisions]
            best = _fastest(reports)
            best = replace(best, tried=[report.summary() for report in reports])
        best = replace(best, seconds=time.perf_counter() - started)
        if best.passed:
            progress("storing")
            best = replace(best, bundle=store(bundle, best, out, force, pages(best.to_json())))
    return best


def _run(bundle: Bundle, threads: int, feeds: Feeds) -> Feeds:
    with TARGETS["cpu"].session(read_model(bundle.onnx), threads=threads) as session:
        return session.run(feeds)


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
        # Of the search, precisions in `AUTOCAST` are those that a runtime casts to.
        target.require_measurable([name for name in reversed(target.precisions) if name not in AUTOCAST])
        return [*reversed(target.precisions), *(name for name in AUTOCAST if name not in target.precisions)]
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", f"one of: auto, {', '.join(PRECISIONS)}")
    target.require(precision)
    return [precision]


def _trained_precision(bundle: Bundle) -> str:
    try:
        return trained_precision(read_model(bundle.onnx))
    except ReluDeployError:
        return ""  # the graph is checked, with a better message, when it is prepared


def _check_names(options: OptimizeOptions, precision: str) -> None:
    if precision != "auto" and (options.batch or options.minimize != "latency"):
        raise UsageError("--minimize and --batch go with --precision auto", "leave them out, or leave out --precision")
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


def _fastest(reports: Sequence[OptimizeReport]) -> OptimizeReport:
    """Return the fastest that passes, among those that pass without a measured speed the first; else the first.

    A variant that is slower than float32 is only returned where there is no other.
    """
    passing = [report for report in reports if report.passed]
    passing = [report for report in passing if not report.is_slower] or passing
    return max(passing, key=lambda report: report.speed.value if report.speed else 0.0, default=reports[0])
