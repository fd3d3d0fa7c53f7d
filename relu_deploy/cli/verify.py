"""Compare every Relu and every output of a backend with the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_summary_option, add_timeout_option
from relu_deploy.cli.output import finish, keep_reports, open_bundle, print_notes
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE, EXIT_UNUSABLE

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "compare every Relu and every output with the truth"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify` to `parser`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--against",
        metavar="torch|reference|OTHER.onnx",
        help="the truth (default: the graph itself in float64, where export has compared it with PyTorch)",
    )
    parser.add_argument("--inputs", type=Path, metavar="FILE.npz", help="arrays named after the model's inputs")
    parser.add_argument(
        "--data", metavar="D", help="folder of pictures, FILE.npz or shipped data set (default: the model's own, else random)"
    )
    parser.add_argument(
        "--preprocess-against",
        type=Path,
        metavar="FILE.npz",
        help="compare the preprocessing of the pictures in --data with these arrays, which training code fed",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="rows of data when no --inputs are given (default 1)")
    parser.add_argument(
        "--optimization",
        default="all",
        metavar="none|basic|extended|all",
        help="how far the runtime may rewrite the graph, where it has such a switch (default all, as deployed)",
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="FINDING",
        help="report this finding without failing; nan-not-propagated: Relus that return a number for NaN (OpenVINO's do)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write JUnit XML: a suite a backend, a case a Relu, output or check"
    )
    parser.add_argument(
        "--trust-source", action="store_true", help="load the bundle's PyTorch program even if loading it could run code in it"
    )
    add_summary_option(parser)
    add_shared_options(parser, "shape", "backend", "seed", "threads", "device", "force")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.data.datasets import load_npz
    from relu_deploy.reporting.ci.github import check_summary, verify_error, write_summary
    from relu_deploy.reporting.ci.junit import verify_junit
    from relu_deploy.reporting.ci.summary import verify_summary
    from relu_deploy.reporting.pages.verify import verify_page
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables.verify import print_verify
    from relu_deploy.storage.targets import refuse_existing_file, write_result
    from relu_deploy.verification.run import verify

    for file in (options.html, options.junit):
        if file:
            refuse_existing_file(file, options.force)
    if options.summary:
        check_summary(options.summary, options.force)
    feeds = load_npz(options.inputs) if options.inputs else None
    shapes = dict(options.shape)
    given = {**{name: array.shape for name, array in (feeds or {}).items()}, **shapes}
    bundle = open_bundle(options.path, given).with_shapes(shapes).with_trust(options.trust_source)
    separate = bundle.with_sizes_of(feeds or {})
    print_notes(bundle.path, separate.notes[len(bundle.notes) :])
    with steps(options.quiet) as step:
        report = verify(
            bundle,
            options.backend or (),
            feeds=feeds,
            against=options.against,
            data=options.data,
            preprocess_against=options.preprocess_against,
            samples=options.samples,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
            optimization=options.optimization,
            accept=options.accept,
            progress=step,
        )
    result = report.to_json()
    # Nothing is stored beside a plain file.
    html = verify_page(result) if options.html or bundle.is_folder else ""
    keep_reports(bundle, {"reports/verify.json": result, "reports/verify.html": html})
    if options.html:
        write_result(options.html, html)
    if options.junit:
        write_result(options.junit, verify_junit(result))
    if options.summary:
        write_summary(options.summary, verify_summary(result))
    if line := verify_error(result):
        print(line, file=sys.stderr)
    finish(options, result, lambda: print_verify(result))
    if options.html and str(options.json) != "-":
        print(f"report: {options.html}")
    if not report.passed:
        return EXIT_CHECK_FAILED
    # Whoever names a backend asks for what the graph says, on that backend.
    return EXIT_UNUSABLE if options.backend and not report.as_requested else EXIT_FINE
