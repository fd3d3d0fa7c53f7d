"""Answer inference requests over HTTP and gRPC."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from relu_deploy.cli.options import add_shared_options
from relu_deploy.cli.output import finish, until_reader_exits
from relu_deploy.errors import EXIT_FINE

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "answer inference requests over HTTP and gRPC (Open Inference Protocol v2) until stopped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve` to `parser`."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="bundles, their variants, or .onnx files")
    parser.add_argument(
        "--backend",
        default="",
        metavar="NAME",
        help="of every model (default: the one that a variant was optimized for, else onnxruntime-cpu)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; 0.0.0.0 for every interface (default 127.0.0.1)"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=int, default=port, metavar="N", help=f"(default {port}; 0 takes a free one, -1 none)"
        )
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="most rows run together (default 8)")
    parser.add_argument(
        "--max-delay", type=float, default=0.0, metavar="MS", help="how long a request may wait for others (default 0)"
    )
    parser.add_argument(
        "--queue", type=int, default=128, metavar="N", help="requests that may wait; further requests get 503 (default 128)"
    )
    parser.add_argument(
        "--deadline", type=float, metavar="S", help="seconds that a request may wait in the queue (default: no limit)"
    )
    parser.add_argument("--max-body", type=float, default=64.0, metavar="MIB", help="largest request body (default 64)")
    parser.add_argument(
        "--request-memory", type=float, default=1024.0, metavar="MIB", help="memory of all requests in progress (default 1024)"
    )
    parser.add_argument(
        "--max-per-client", type=int, default=0, metavar="N", help="requests of one address in progress (default 0: no limit)"
    )
    _add_access_options(parser)
    parser.add_argument(
        "--monitor-share",
        type=float,
        metavar="S",
        help="share of rows whose Relus are compared with the census, 0 to 1 (default 0.01 for a model that has a census)",
    )
    parser.add_argument(
        "--traces", metavar="ENDPOINT", help="send OpenTelemetry traces to this collector (OTLP over HTTP): http://localhost:4318"
    )
    parser.add_argument(
        "--trace-share",
        type=float,
        metavar="S",
        help="share of requests that are traced unless their traceparent says whether, 0 to 1 (default 0.01)",
    )
    parser.add_argument("--log-json", action="store_true", help="log one JSON object a line to stderr")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="lowest level that is logged (default info)",
    )
    parser.add_argument(
        "--log-slow", type=float, default=1000.0, metavar="MS", help="log requests that take as long (default 1000)"
    )
    parser.add_argument(
        "--max-pixels", type=float, default=40.0, metavar="MEGAPIXELS", help="largest picture that is decoded (default 40)"
    )
    parser.add_argument("--allow-nan", action="store_true", help="take NaN and infinities in inputs (default: refuse them)")
    parser.add_argument("--no-watch", dest="watch", action="store_false", help="do not reload a model whose file changes")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="end with an error if loading a model takes longer (default: no limit)"
    )
    add_shared_options(parser, "threads")


def _add_access_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate: HTTPS, and gRPC over TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of the certificate")
    parser.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="require client certificates of this authority")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="require one of these keys; ROLE[,ROLE] KEY a line: infer, admin, metrics",
    )
    parser.add_argument(
        "--require-signature",
        type=Path,
        metavar="PUBLIC.pem",
        help="refuse bundles that this key did not sign, or that were changed since, also when they are reloaded",
    )
    parser.add_argument("--allow-admin", action="store_true", help="let requests load and unload models (default: refuse them)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients may call the server by; repeatable",
    )
    parser.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="let pages of this origin use the server; repeatable"
    )


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.backends import require
    from relu_deploy.cli.isolation import check_timeout, try_in_child
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables.serve import print_serve
    from relu_deploy.serving.run import serve, serve_options
    from relu_deploy.serving.transport.sockets import raise_descriptor_limit
    from relu_deploy.serving.trial import load_and_close

    timeout = check_timeout(options)
    settings = serve_options(options)
    if settings.settings.signature_key is None:
        # Imported once for the processes below and the server. Unlike a runtime it starts no threads, which a fork would lose.
        import onnx_ir  # noqa: F401
    for path in options.paths if settings.settings.signature_key is None else ():
        # A model that crashes the runtime, or is never loaded, ends another process than the server. A signed one is trusted.
        try_in_child(partial(load_and_close, path, settings.settings), f"loading {path}", timeout)
    if options.backend:
        # Some runtimes start threads when they are imported, after which this process cannot be forked.
        require(options.backend)

    def started(addresses: dict[str, Any]) -> None:
        result = {"schema": "relu-deploy/serve/1", **addresses}
        finish(options, result, lambda: print_serve(result))
        if sys.stdout is not None:
            with until_reader_exits():
                sys.stdout.flush()

    raise_descriptor_limit()
    with steps(options.quiet or options.log_json) as step:
        serve(options.paths, settings, progress=step, started=started, exits=True)
    return EXIT_FINE
