"""Run every bit pattern of a dtype through a backend's Relu kernel."""

from __future__ import annotations

import argparse

from relu_deploy.cli.options import add_shared_options
from relu_deploy.cli.output import finish
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "run every bit pattern of a dtype through a backend's own Relu kernel"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prove` to `parser`."""
    parser.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="whose kernel (default onnxruntime-cpu)")
    parser.add_argument(
        "--dtype", default="float32", metavar="float32|float16|bfloat16|int8", help="default float32: all 2^32 of them"
    )
    parser.add_argument("--strict", action="store_true", help="fail for a zero of the other sign too, which ONNX leaves open")
    add_shared_options(parser, "threads", "device")
    # No file is opened, but the command runs in a process of its own, as others that load a runtime.
    parser.set_defaults(models="")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables.prove import print_prove
    from relu_deploy.verification.exhaustive import prove

    with bar(options.quiet, f"{options.backend}, {options.dtype}") as progress:
        report = prove(
            options.backend,
            options.dtype,
            threads=options.threads,
            device=options.device,
            strict=options.strict,
            progress=progress,
        )
    result = report.to_json()
    finish(options, result, lambda: print_prove(result))
    return EXIT_FINE if report.passed else EXIT_CHECK_FAILED
