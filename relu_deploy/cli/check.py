"""Check the signature of a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from relu_deploy.cli.output import finish
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "check the signature of a bundle with a public key"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `check` to `parser`."""
    parser.add_argument("path", metavar="PATH", help="a bundle")
    parser.add_argument("--key", required=True, type=Path, metavar="PUBLIC.pem", help="public key of the signer")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.reporting.tables.sign import print_signature
    from relu_deploy.signing.run import check_signature

    report = check_signature(options.path, options.key)
    result = {"schema": "relu-deploy/check/1", **report.to_json()}
    finish(options, result, lambda: print_signature(result))
    return EXIT_FINE if report.signed else EXIT_CHECK_FAILED
