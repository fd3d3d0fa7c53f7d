"""Predict labels, boxes or masks for pictures, texts and arrays."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish
from relu_deploy.errors import EXIT_FINE, UsageError

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "predict labels, boxes or masks for pictures, folders, texts and arrays"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict` to `parser`."""
    parser.add_argument("path", metavar="PATH", help="a bundle or a variant in one")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="pictures, folders, patterns such as 'photos/*.jpg', .npz files, .txt or .tsv files",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="OUT",
        help="write one row an input to OUT.jsonl, OUT.csv or OUT.parquet; inputs with a row in it are skipped",
    )
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write the pictures with their predictions into this folder")
    parser.add_argument("--shard", metavar="I/N", help="predict every N-th input, starting with the I-th")
    parser.add_argument(
        "--backend",
        default="",
        metavar="NAME",
        help="backend to run on (default: the one that the variant was optimized for, else onnxruntime-cpu)",
    )
    parser.add_argument("--variant", default="", metavar="NAME", help="variant of the bundle (default: the model itself)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes of a classification (default 5)")
    parser.add_argument("--threshold", type=float, metavar="X", help="score above which boxes count (default: the manifest's)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="most inputs that run together (default 8)")
    add_shared_options(parser, "threads", "device", "force")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.backends import require
    from relu_deploy.prediction.predictor import Predictor
    from relu_deploy.prediction.run import predict
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables.predict import print_predict

    shard = _shard(options.shard)
    if options.backend:
        require(options.backend)
    settings = {name: getattr(options, name) for name in ("top", "threshold", "batch", "threads", "device")}
    with (
        Predictor(options.path, options.backend, options.variant, **settings) as predictor,
        bar(options.quiet, f"predict on {predictor.backend}") as progress,
    ):
        report = predict(
            predictor, options.inputs, options.out, draw=options.draw, shard=shard, force=options.force, progress=progress
        )
    result = {"schema": "relu-deploy/predict/1", **report.to_json()}
    finish(options, result, lambda: print_predict(result))
    return EXIT_FINE


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)) is None:
        raise UsageError(f"--shard {text!r} is not I/N", "for instance --shard 1/4")
    return int(match[1]), int(match[2])
