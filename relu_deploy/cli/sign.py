"""Sign a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from relu_deploy.cli.options import add_shared_options
from relu_deploy.cli.output import finish
from relu_deploy.errors import EXIT_FINE

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "sign every file of a bundle with a key, as OpenSSF Model Signing does"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sign` to `parser`."""
    parser.add_argument("path", metavar="PATH", help="a bundle")
    parser.add_argument("--key", required=True, type=Path, metavar="PRIVATE.pem", help="private key, elliptic curve")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="the password of the key")
    add_shared_options(parser, "force")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.reporting.tables.sign import print_signature
    from relu_deploy.signing.run import MAX_BYTES, sign_bundle
    from relu_deploy.storage.files import read_regular

    password = None
    if options.password_file:
        password = read_regular(options.password_file, MAX_BYTES).decode("utf-8", "surrogateescape").rstrip("\r\n")
    report = sign_bundle(options.path, options.key, password=password, force=options.force)
    result = {"schema": "relu-deploy/sign/1", **report.to_json()}
    finish(options, result, lambda: print_signature(result))
    return EXIT_FINE
