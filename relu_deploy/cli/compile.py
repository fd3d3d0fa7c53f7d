"""Build the engine of a model ahead of time."""

from __future__ import annotations

import argparse
import sys

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, note_stale_signature, open_bundle
from relu_deploy.cli.types import build_options

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "build the engine of a model ahead of time; engines are kept by content"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compile` to `parser`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--backend", required=True, metavar="NAME", help="tensorrt, or tensorrt-rtx, which needs no GPU for it")
    parser.add_argument("--variant", default="", metavar="NAME", help="of the bundle, for instance int8-tensorrt-rtx")
    parser.add_argument(
        "-o", "--out", metavar="OUT", help="FILE, FOLDER/ or BUNDLE.rdb to put it (default: kept in PATH, or in the user's cache)"
    )
    parser.add_argument(
        "--batch",
        action="append",
        metavar="MIN,OPT,MAX",
        help="batch sizes of an optimization profile; repeatable, N for one size (default 1,8,32)",
    )
    parser.add_argument(
        "--profile",
        action="append",
        metavar="NAME=MIN,OPT,MAX",
        help="whole shapes, such as x=1x3x224x224,8x3x224x224,32x3x512x512; the same NAME again starts the next profile",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="CC[,CC…]",
        help="tensorrt-rtx: the GPUs to build for, such as 8.6,8.9 (default: its own set)",
    )
    parser.add_argument("--level", type=int, metavar="0-5", help="builder optimization level (default: the library's, 3)")
    parser.add_argument("--workspace", type=float, metavar="GIB", help="most device memory for a kernel's workspace")
    parser.add_argument("--tf32", action="store_true", help="let float32 matrices be multiplied in TF32 (10 bits of mantissa)")
    parser.add_argument("--version-compatible", action="store_true", help="an engine that later versions run too")
    parser.add_argument(
        "--hardware-compatible",
        default="",
        metavar="ampere-plus|same-compute-capability",
        help="tensorrt: an engine for other GPUs too",
    )
    parser.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    parser.add_argument("--refit", action="store_true", help="weights can be replaced later")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="build N times, run all on the GPU, keep the best that verifies"
    )
    parser.add_argument("--rebuild", action="store_true", help="build even if the engine is kept")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    add_shared_options(parser, "force")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.compilation.run import compile as compile_engine
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables.compile import print_compile
    from relu_deploy.reporting.terminal import printable

    with bar(options.quiet, f"building for {options.backend}") as progress:
        report = compile_engine(
            open_bundle(options.path),
            options.backend,
            variant=options.variant,
            out=options.out,
            options=build_options(options),
            device=options.device,
            repeat=options.repeat,
            rebuild=options.rebuild,
            force=options.force,
            progress=progress,
            warn=lambda line: print(f"warning: {printable(line)}", file=sys.stderr),
        )
    if not report.cache_hit:
        # The cache is the folder engines/ of the bundle.
        note_stale_signature(report.kept.file.parent.parent)
    result = {"schema": "relu-deploy/compile/1", **report.to_json()}
    return finish(options, result, lambda: print_compile(result))
