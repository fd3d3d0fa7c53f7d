"""The command line: parse the arguments, run the verb, turn errors into exit codes.

A verb is a module of this package with `SUMMARY`, `add_options(parser)` and `run(options)`, and a line in `VERBS`. It parses,
calls the library and renders; it holds no logic. Nothing heavy is imported until a verb that needs it runs.

Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 3 a requested backend or its hardware is not usable here,
70 an error in relu-deploy itself.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import IO, NoReturn

from relu_deploy.cli.options import add_output_options
from relu_deploy.cli.output_files import check_output_files
from relu_deploy.errors import EXIT_INTERRUPTED, EXIT_UNREAD, InputError, InternalError, ReluDeployError, UsageError
from relu_deploy.interrupts import end_on_interrupt
from relu_deploy.run_limit import end_overdue_runs, limited_runs
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
    "sign",
    "check",
    "doctor",
    "schema",
)

#: verbs that run no model in this process, and one whose limits are those of loading a model, not of later requests
UNLIMITED = ("inspect", "serve")
#: what Python says when the system has no memory or number left for a thread
NO_THREAD = "can't start new thread"
EPILOG = """exit codes: 0 success · 1 a check failed · 2 bad usage or input · 3 backend or hardware not usable here · 70 a bug
PATH is a bundle (a folder made by export) or a plain .onnx file."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others: one line, a hint, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see: {self.prog} --help")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        # argparse's own ignores a failed write: --help into a full disk would look like success.
        if message and (stream := file or sys.stderr) is not None:
            stream.write(message)


def create_parser(complete: Collection[str] = VERBS) -> argparse.ArgumentParser:
    """Return the parser of the command line; it sets `verb` to the name of the verb and `run` to its function.

    Args:
        complete: Verbs that get their options. The others are listed only, which takes less time.
    """
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
        if name not in complete:
            continue
        verb.set_defaults(verb=name, run=module.run)
        add_output_options(verb)
        module.add_options(verb)
    return parser


def main(arguments: Sequence[str] | None = None, *, isolated: bool = False) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: The command without the program's name; those of this process by default.
        isolated: Run a verb that runs models in a process of its own; see `isolation`.
    """
    if isolated:
        _open_closed_streams()
    _replace_unencodable()
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        return _run(arguments, isolated)
    except BrokenPipeError:
        # Whoever read the output or the progress (head, a pager) has exited before the command was finished.
        _forget_output()
        return EXIT_UNREAD
    except KeyboardInterrupt:
        if isolated:
            end_on_interrupt()
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            raise
        shown = as_reported(error)
        _print_error(shown)
        return shown.exit_code


def _run(arguments: Sequence[str] | None, isolated: bool) -> int:
    try:
        words = sys.argv[1:] if arguments is None else arguments
        # The first word without a dash is the verb.
        options = create_parser([word for word in words if not word.startswith("-")][:1]).parse_args(words)
        check_output_files(options)
        if isolated and "models" in options:
            from relu_deploy.cli.isolation import run_isolated

            if (ended := run_isolated(options)) is not None:
                return ended
            end_overdue_runs(_report_and_end)
        _escape_library_output()
        _limit_memory(options)
        with limited_runs(getattr(options, "timeout", 1.0) is None and options.verb not in UNLIMITED):
            code: int = options.run(options)
    except SystemExit:
        # --help and --version have printed, but not all of it may be written.
        _flush()
        raise
    _flush()
    return code


def _forget_output() -> None:
    """Let nothing be written to standard output any more; Python would try, and print an error, when it exits."""
    sys.stdout = None  # type: ignore[assignment]


def _flush() -> None:
    """Write what was printed. A reader who has exited has seen enough.

    Raises:
        InputError: If standard output cannot take it: a full disk must not look like success.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
    except OSError as error:
        _forget_output()
        raise InputError(f"cannot write to standard output: {error.strerror}", "free some space, or write elsewhere") from error


def as_reported(error: Exception) -> ReluDeployError:
    """Return what to print for an error: itself if it is for people, else a description of it.

    The system's refusals (a full disk, a missing permission) and too little memory are bad input; anything else is a bug.
    """
    if isinstance(error, ReluDeployError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error) == NO_THREAD):
        return InputError("there is not enough memory for this", "use a smaller batch, fewer --samples or a smaller model")
    if isinstance(error, OSError) and error.errno is not None:
        name = f" {error.filename}" if error.filename else ""
        return InputError(
            f"cannot read or write{name}: {error.strerror}", "check the path, its permissions and the free space; see also TMPDIR"
        )
    lines = str(error).strip().splitlines()
    return InternalError(
        f"unexpected {type(error).__name__}{': ' + lines[0][:300] if lines else ''}",
        "this is a bug in relu-deploy: report it with what the same command prints with --debug",
    )


def _open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    A file that is opened later would get the number of a closed one, and what runtimes print would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False, errors="replace")  # it stays open until the process ends  # noqa: SIM115


def _replace_unencodable() -> None:
    """Let a terminal that is not UTF-8 show a question mark for what it cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _print_error(error: ReluDeployError) -> None:
    """Print the message and the hint of `error`, a line each. Both may quote names from files."""
    from relu_deploy.reporting.terminal import printable

    print(f"error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def _report_and_end(error: ReluDeployError) -> None:
    """Print an error and end this process at once, because its main thread is inside a runtime."""
    _print_error(error)
    os._exit(error.exit_code)


def _limit_memory(options: argparse.Namespace) -> None:
    if options.max_memory is None:
        return
    from relu_deploy.graph.loading.resources import set_memory_limit

    if not options.max_memory > 0:
        raise UsageError(f"--max-memory must be positive, not {options.max_memory:g}", "for instance --max-memory 4")
    set_memory_limit(int(options.max_memory * 1e9))


def _escape_library_output() -> None:
    from relu_deploy.reporting.terminal import escape_library_output

    escape_library_output()
