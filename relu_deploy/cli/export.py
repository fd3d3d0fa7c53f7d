"""Make a bundle from a PyTorch model or an ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, print_notes
from relu_deploy.cli.types import argument, batch_axis, floats, input_shape, label_names, number, pixels

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "make a bundle from a PyTorch model or an ONNX file"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export` to `parser`."""
    parser.add_argument("source", metavar="SOURCE", help="zoo name, package.module:callable, FILE.pt2 or FILE.onnx")
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT", help="the bundle to make, for instance digits.rdb"
    )
    parser.add_argument(
        "--weights", metavar="FILE|published", help=".safetensors or .pth state dict, or torchvision's weights for a zoo model"
    )
    parser.add_argument(
        "--weights-key",
        metavar="NAME",
        help="which weights of a checkpoint that holds several: ema, model, ... (default: the averaged ones, if any)",
    )
    parser.add_argument("--weights-url", metavar="URL", help="where published weights are downloaded from instead")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=input_shape,
        metavar="NAME=1x3x224x224[:TYPE]",
        help="an input's shape, and its type where it is not that of the weights; repeatable",
    )
    parser.add_argument(
        "--batch-axis",
        action="append",
        default=[],
        type=batch_axis,
        metavar="NAME=N|none",
        help="which axis of an input or output is the batch, counted from 0 (default: the first); repeatable",
    )
    parser.add_argument(
        "--arg", action="append", default=[], type=argument, metavar="KEY=VALUE", help="argument of the architecture or callable"
    )
    parser.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="fix the batch, or let it vary (default)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default 20)")
    parser.add_argument("--embed-preprocess", action="store_true", help="take uint8 NHWC pictures; normalize inside the graph")
    parser.add_argument(
        "--preprocess",
        metavar="NAME|FILE.json",
        help="how pictures become the input: torchvision, torchvision-tensor, opencv, ultralytics, keras, tensorflow, caffe, or a file",
    )
    parser.add_argument("--mean", type=floats, metavar="M[,M,M]", help="normalization of pixels scaled to 0..1")
    parser.add_argument("--std", type=floats, metavar="S[,S,S]", help="normalization of pixels scaled to 0..1")
    parser.add_argument(
        "--labels", type=label_names, metavar="FILE", help="names of the classes, of pictures or of pixels, one a line"
    )
    parser.add_argument(
        "--decode", choices=("none", "boxes", "nms"), help="detectors: raw head maps, boxes and scores (default), or detections"
    )
    parser.add_argument(
        "--trust-source", action="store_true", help="load a .pt2 file even if loading it could run code that it contains"
    )
    parser.add_argument(
        "--no-compare", action="store_true", help="do not compare the graph with the PyTorch program; verify does it instead"
    )
    add_shared_options(parser, "shape", "seed", "force")
    add_timeout_option(parser, "source")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.exporting.exporter import export_source
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables.export import print_export
    from relu_deploy.reporting.terminal import printable

    batch = options.batch if options.batch == "dynamic" else number(options.batch, "--batch")
    with steps(options.quiet) as step:
        step(f"exporting {options.source}")
        made = export_source(
            options.source,
            options.out,
            inputs=dict(options.input) or None,
            shapes=dict(options.shape),
            batch=batch,
            batch_axes=dict(options.batch_axis),
            opset=options.opset,
            weights=options.weights,
            weights_url=options.weights_url,
            weights_key=options.weights_key,
            arguments=dict(options.arg),
            embed_preprocess=options.embed_preprocess,
            preprocess=options.preprocess,
            pixels=pixels(options),
            decode=options.decode,
            labels=options.labels,
            seed=options.seed,
            force=options.force,
            trust_source=options.trust_source,
            compare=not options.no_compare,
        )
    if made.untrained and not options.quiet:
        from relu_deploy.zoo.published import published_url

        given = "FILE" if published_url(made.bundle.name) is None else "FILE|published"
        print(
            f"warning: {printable(made.bundle.name)} has random weights; give trained ones with --weights {given}",
            file=sys.stderr,
        )
    print_notes(Path(str(options.source)), made.notes)
    if made.verdict is not None and not made.verdict.passed and not options.quiet:
        print(
            f"warning: the graph of {printable(made.bundle.name)} differs from the PyTorch program at "
            f"{printable(str(made.verdict.first_divergence))}; locate the fault with relu-deploy verify {printable(options.out)}",
            file=sys.stderr,
        )
    result = {"schema": "relu-deploy/export/1", **made.to_json()}
    return finish(options, result, lambda: print_export(result))
