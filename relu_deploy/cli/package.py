"""Write what another engine deploys."""

from __future__ import annotations

import argparse
from pathlib import Path

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, open_bundle

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "write what another engine deploys: a model repository, manifests, an image's context, a model package"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `package` to `parser`."""
    parser.add_argument("path", metavar="PATH", help="a bundle, a variant in one, or an .onnx file")
    parser.add_argument("--for", dest="target", required=True, metavar="triton|kserve|docker|onnxruntime", help="what deploys it")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="the folder to write, whole or not at all")
    parser.add_argument(
        "--flavor",
        default="",
        metavar="NAME",
        help="triton: onnxruntime (default), tensorrt (a compiled engine), python (needs no other backend); "
        "kserve: relu-deploy (default), or one of these on Triton",
    )
    parser.add_argument("--flavour", dest="flavor", help=argparse.SUPPRESS)
    parser.add_argument(
        "--device", default="", metavar="cpu|gpu", help="(default: what the variant was made for, else what is found)"
    )
    parser.add_argument("--max-batch", type=int, metavar="N", help="most rows run together (default: measured by bench, else 8)")
    parser.add_argument(
        "--max-delay",
        type=float,
        metavar="MS",
        help="how long a request may wait for others (default: measured by bench, else 0.1)",
    )
    parser.add_argument("--instances", type=int, default=0, metavar="N", help="triton: copies of the model (default 1 a device)")
    parser.add_argument(
        "--accelerator", default="", metavar="tensorrt", help="triton, flavor onnxruntime: hand the graph to TensorRT"
    )
    parser.add_argument("--storage-uri", default="", metavar="URI", help="kserve: where the model is, such as s3://bucket/digits")
    parser.add_argument("--image", default="", metavar="NAME", help="kserve: the server's image; docker: the base image")
    add_shared_options(parser, "threads", "force")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.packaging.run import package
    from relu_deploy.reporting.tables.package import print_package

    report = package(
        open_bundle(options.path),
        options.target,
        options.out,
        flavor=options.flavor,
        device=options.device,
        max_batch=options.max_batch,
        max_delay=options.max_delay,
        instances=options.instances,
        threads=options.threads,
        accelerator=options.accelerator,
        storage_uri=options.storage_uri,
        image=options.image,
        force=options.force,
    )
    result = {"schema": "relu-deploy/package/1", **report.to_json()}
    return finish(options, result, lambda: print_package(result))
