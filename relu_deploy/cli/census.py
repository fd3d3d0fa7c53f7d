"""Count how the Relus behave on data."""

from __future__ import annotations

import argparse

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, keep_reports, open_bundle
from relu_deploy.cli.types import floats
from relu_deploy.errors import UsageError

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "count dead, always-on and sparse Relus on data, and prove what can be proven"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `census` to `parser`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--data", required=True, metavar="D", help="folder of pictures, FILE.npz, FILE.tsv of texts, or shipped data set"
    )
    parser.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="where to run (default onnxruntime-cpu)")
    parser.add_argument("--samples", type=int, metavar="N", help="rows of the data, spread evenly (default: all)")
    parser.add_argument("--batch", type=int, metavar="N", help="rows at a time (default: what fits in little memory)")
    parser.add_argument(
        "--range", type=floats, metavar="LOW,HIGH", help="of the input, as --range=-1,1 (default: what pixels become)"
    )
    add_shared_options(parser, "shape", "threads", "device")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.activations.census import census
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables.census import print_census

    if options.range is not None and len(options.range) != 2:
        raise UsageError(f"--range takes two numbers, not {len(options.range)}", "for instance --range 0,1 or --range=-1,1")
    bundle = open_bundle(options.path, dict(options.shape)).with_shapes(dict(options.shape))
    with bar(options.quiet, f"census on {options.backend}") as progress:
        report = census(
            bundle,
            options.data,
            backend=options.backend,
            samples=options.samples,
            batch=options.batch,
            threads=options.threads,
            device=options.device,
            input_range=None if options.range is None else (options.range[0], options.range[1]),
            progress=progress,
        )
    result = report.to_json()
    baseline = {} if report.baseline is None else {"reports/baseline.npz": report.baseline.to_bytes()}
    keep_reports(bundle, {**baseline, "reports/census.json": result})
    return finish(options, result, lambda: print_census(result))
