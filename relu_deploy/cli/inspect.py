"""Show what is in a graph."""

from __future__ import annotations

import argparse

from relu_deploy.cli.options import add_shared_options, add_timeout_option
from relu_deploy.cli.output import finish, open_bundle

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "show the Relus, what each fuses with, shapes and cost"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect` to `parser`."""
    parser.add_argument("path", metavar="PATH")
    add_shared_options(parser, "shape")
    parser.add_argument("--batch", type=int, default=1, help="size of varying dimensions in the cost (default 1)")
    add_timeout_option(parser, "path")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.graph import count_cost, find_relus, opset_of, read_model, set_input_shapes
    from relu_deploy.reporting.tables.inspect import print_inspect

    bundle = open_bundle(options.path)
    model = read_model(bundle.onnx)
    if options.shape:
        model = set_input_shapes(model, dict(options.shape))
    cost = count_cost(model, options.batch)
    result = {
        "schema": "relu-deploy/inspect/1",
        "model": bundle.name,
        "opset": opset_of(model),
        "inputs": [spec.to_json() for spec in bundle.inputs],
        "outputs": [spec.to_json() for spec in bundle.outputs],
        "nodes": len(model.graph),
        "batch": cost.batch,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "parameters": cost.parameters,
        "unknown": list(cost.unknown),
        "symbols": list(cost.symbols),
        "relus": [relu.to_json() for relu in find_relus(model)],
    }
    return finish(options, result, lambda: print_inspect(result))
