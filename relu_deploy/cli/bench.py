"""Measure speed and accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_summary_option, add_timeout_option
from relu_deploy.cli.output import finish, keep_reports, open_bundle
from relu_deploy.cli.types import numbers, share
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE, UsageError

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "measure speed and accuracy; with no PATH, of the shipped models"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench` to `parser`."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="bundles, .onnx files or zoo names")
    parser.add_argument("--batch", default="1", metavar="N[,N…]", help="batch sizes (default 1)")
    parser.add_argument("--data", metavar="D", help="what is fed and scored (default: the model's own data set, else random)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of timed runs per row (default 2, with --quick 0.5)")
    parser.add_argument("--quick", action="store_true", help="one small model, half a second a row: a first look")
    parser.add_argument(
        "--layers", action="store_true", help="also time each layer of the runtime, by Relu segment, beside the roofline"
    )
    parser.add_argument("--against", metavar="BACKEND", help="take ratios against this backend (default: the first)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    parser.add_argument("--tf32", action="store_true", help="let GPUs multiply float32 with 10 bits of mantissa")
    parser.add_argument("--autocast", default="", metavar="TYPE", help="float16 or bfloat16, for PyTorch on a GPU and OpenVINO")
    parser.add_argument("--torch-mode", default="default", metavar="MODE", help="of torch.compile, such as max-autotune")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report with plots")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="fail if a row is slower than in this earlier report")
    parser.add_argument(
        "--max-slower",
        default="5%",
        metavar="P%",
        help="slowdown that --compare allows, beyond the confidence interval (default 5%%)",
    )
    add_summary_option(parser)
    add_shared_options(parser, "shape", "backend", "seed", "threads", "force")
    add_timeout_option(parser, "paths")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.backends import require
    from relu_deploy.benchmark.compare import compare_with, load_report
    from relu_deploy.benchmark.prepare_models import QUICK, bundles_for
    from relu_deploy.benchmark.run import bench
    from relu_deploy.reporting.ci.github import check_summary, write_summary
    from relu_deploy.reporting.ci.summary import bench_summary
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables.bench import print_bench
    from relu_deploy.storage.targets import refuse_existing_file, write_result

    # Backend names are checked before minutes are spent on exporting.
    batches = numbers(options.batch, "--batch")
    for name in options.backend or ():
        require(name)
    given = {"device": options.device, "tf32": options.tf32, "autocast": options.autocast, "torch_mode": options.torch_mode}
    settings = {name: value for name, value in given.items() if value not in (0, False, "", "default")}
    if options.html:
        refuse_existing_file(options.html, options.force)
    if options.summary:
        check_summary(options.summary, options.force)
    max_slower = share(options.max_slower, "--max-slower")
    if options.compare:
        load_report(options.compare)
    if options.quick and options.paths:
        raise UsageError(f"--quick measures {QUICK}, and a model was given too", "leave one of the two out")
    seconds = options.seconds if options.seconds is not None else 0.5 if options.quick else 2.0
    with steps(options.quiet) as step, bundles_for([QUICK] if options.quick else options.paths, step) as paths:
        models = [open_bundle(str(path), dict(options.shape)) for path in paths]
        report = bench(
            models,
            options.backend or None,
            batch=batches,
            seconds=seconds,
            against=options.against,
            threads=options.threads,
            seed=options.seed,
            settings=settings,
            data=options.data,
            shapes=dict(options.shape),
            layers=options.layers,
            progress=step,
            row_done=lambda row: step.keep(row.summary()),
        )
        result = report.to_json()
        for bundle in models:
            report_of_model = {**result, "runs": [run for run in result["runs"] if run["model"] == bundle.name]}
            keep_reports(bundle, {"reports/bench.json": report_of_model})
    comparison = compare_with(options.compare, result, max_slower) if options.compare else None
    if comparison is not None:
        result["comparison"] = comparison.to_json()
    if options.summary:
        write_summary(options.summary, bench_summary(result))
    if options.html:
        from relu_deploy.reporting.pages.bench import bench_page

        write_result(options.html, bench_page(result))
    finish(options, result, lambda: print_bench(result))
    if options.html and str(options.json) != "-":
        print(f"report: {options.html}")
    passed = report.passed and (comparison is None or comparison.passed)
    return EXIT_FINE if passed else EXIT_CHECK_FAILED
