"""The command line: parse the arguments, run the verb, turn errors into exit codes.

A verb is a module of this package with `SUMMARY`, `add_options(parser)` and `run(options)`, and a line in `VERBS`. It parses,
calls the library and renders; it holds no logic. Nothing heavy is imported until a verb that needs it runs.

Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 3 a requested backend or its hardware is not usable here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from relu_deploy.cli.options import add_output_options
from relu_deploy.errors import EXIT_FINE, ReluDeployError, UsageError
from relu_deploy.version import __version__

__all__ = ["VERBS", "create_parser", "main"]

#: The verbs, each a module of this package, in the order of the help.
VERBS = (
    "zoo",
    "export",
    "inspect",
    "verify",
    "prove",
    "census",
    "optimize",
    "compile",
    "bench",
    "predict",
    "serve",
    "package",
    "doctor",
    "schema",
)

EPILOG = """exit codes: 0 success · 1 a check failed · 2 bad usage or input · 3 backend or hardware not usable here
PATH is a bundle (a folder made by export) or a plain .onnx file."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others: one line, a hint, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see: {self.prog} --help")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; it sets `verb` to the name of the verb and `run` to its function."""
    parser = _Parser(
        prog="relu-deploy",
        description="Take ReLU networks from PyTorch to production, and prove what was shipped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relu-deploy {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for name in VERBS:
        module = import_module(f"relu_deploy.cli.{name}")
        summary = module.SUMMARY
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        verb.set_defaults(verb=name, run=module.run)
        add_output_options(verb)
        module.add_options(verb)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: The command without the program's name; those of this process by default.
    """
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        options = create_parser().parse_args(arguments)
        _escape_library_output()
        code: int = options.run(options)
        sys.stdout.flush()
    except ReluDeployError as error:
        if debug:
            raise
        _print_error(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, a pager) has exited; Python would print an error when it flushes at exit.
        sys.stdout = None  # type: ignore[assignment]
        return EXIT_FINE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def _print_error(error: ReluDeployError) -> None:
    """Print the message and the hint of `error`, a line each. Both may quote names from files."""
    from relu_deploy.reporting.terminal import printable

    print(f"error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def _escape_library_output() -> None:
    from relu_deploy.reporting.terminal import escape_library_output

    escape_library_output()
