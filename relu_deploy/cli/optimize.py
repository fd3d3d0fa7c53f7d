"""Make a variant of a model for a target."""

from __future__ import annotations

import argparse
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, note_stale_signature, open_bundle, print_notes
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE, UsageError

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "make a variant for a target, small and fast, that passes an accuracy gate"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `optimize` to `parser`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="a copy of the bundle with the variant (default: add it to PATH)"
    )
    parser.add_argument(
        "--for", dest="target", default="cpu", metavar="TARGET", help="cpu (default), cuda, tensorrt or tensorrt-rtx"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|fp16|bf16|int8|fp8",
        help="auto (default) takes the fastest that passes the gate",
    )
    parser.add_argument(
        "--calibration",
        metavar="D",
        help="what int8 and fp8 are calibrated on, as for census --data (default: the model's own set)",
    )
    parser.add_argument("--samples", type=int, default=128, metavar="N", help="rows to calibrate on, spread evenly (default 128)")
    parser.add_argument(
        "--data", metavar="D", help="what accuracy is measured on (default: the model's own set, else --calibration)"
    )
    parser.add_argument("--eval-samples", type=int, metavar="N", help="most rows that accuracy is measured on (default: all)")
    parser.add_argument(
        "--max-drop", type=float, metavar="X", help="accuracy that may be lost (default 0.005 with labels, 0.05 without)"
    )
    parser.add_argument(
        "--max-confidence-shift",
        type=float,
        metavar="X",
        help="shift of the mean confidence, up or down, that is accepted (default: any; it is reported always)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="X",
        help="detectors: the score at which you cut; confidence and an AP are measured there (default 0.5)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NODE|GLOB",
        help="keep these nodes in float32, for instance 'head.*'; repeatable",
    )
    parser.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="list of the errors of all segments: read if it exists, else measured and written (JSON)",
    )
    parser.add_argument(
        "--method",
        metavar="mse|minmax|percentile|entropy|auto",
        help="of calibration (default mse, and minmax where a Relu differs with mse); auto keeps the most accurate",
    )
    parser.add_argument("--weights", default="per-channel", metavar="per-channel|per-tensor", help="scales of the weights")
    parser.add_argument(
        "--equalize",
        action=argparse.BooleanOptionalAction,
        help="scale neighboring layers to each other (default: with per-tensor weights)",
    )
    parser.add_argument(
        "--bias-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the mean error of quantized weights out of the biases",
    )
    parser.add_argument(
        "--weight-bits", type=int, metavar="7|8", help="cpu: 7 for x86 without VNNI (default: what this CPU takes)"
    )
    parser.add_argument("--compact", action="store_true", help="remove channels and Relus that provably never act")
    parser.add_argument("--allow-observed", action="store_true", help="with --compact: and channels that never fired on the data")
    parser.add_argument(
        "--minimize",
        default="latency",
        metavar="latency|throughput",
        help="what auto compares: the time of a run with 1 row (default), or rows per second with 8",
    )
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="rows in a run that auto times, instead of 1 or 8")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="FINDING",
        help="do not fail a variant for this finding; nan-not-propagated: Relus that return a number for NaN (OpenVINO's do)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    add_shared_options(parser, "shape", "seed", "threads", "force")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.optimization.options import OptimizeOptions
    from relu_deploy.optimization.run import optimize_bundle
    from relu_deploy.reporting.pages.optimize import optimize_page
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables.optimize import print_optimize
    from relu_deploy.storage.targets import refuse_existing_file, write_result

    if options.weights not in ("per-channel", "per-tensor"):
        raise UsageError(
            f"--weights {options.weights!r} is neither per-channel nor per-tensor", "per-channel is the more exact one"
        )
    if options.html:
        refuse_existing_file(options.html, options.force)
    settings = OptimizeOptions(
        calibration=options.calibration,
        data=options.data,
        samples=options.samples,
        eval_samples=options.eval_samples,
        max_drop=options.max_drop,
        max_confidence_shift=options.max_confidence_shift,
        score_threshold=options.score_threshold,
        exclude=tuple(options.exclude),
        sensitivity=options.sensitivity,
        method=options.method,
        per_channel=options.weights == "per-channel",
        equalize=options.equalize,
        correct_biases=options.bias_correction,
        weight_bits=options.weight_bits,
        compact=options.compact,
        allow_observed=options.allow_observed,
        threads=options.threads,
        accept=options.accept,
        minimize=options.minimize,
        batch=options.batch,
        seed=options.seed,
    )
    with steps(options.quiet) as step:
        report = optimize_bundle(
            open_bundle(options.path, dict(options.shape)).with_shapes(dict(options.shape)),
            options.target,
            options.precision,
            out=options.out,
            force=options.force,
            progress=step,
            options=settings,
            pages=lambda result: {f"reports/optimize-{result['variant']}.html": optimize_page(result)},
        )
    if report.data.is_own and not options.quiet:
        name = report.data.calibrated_on.name
        print_notes(Path(options.path), [f"calibrated on the model's own data set {name!r}; --calibration takes another"])
    result = report.to_json()
    if options.html:
        write_result(options.html, optimize_page(result))
    finish(options, result, lambda: print_optimize(result))
    if report.bundle is not None:
        note_stale_signature(report.bundle.path)
    return EXIT_FINE if report.bundle is not None else EXIT_CHECK_FAILED
