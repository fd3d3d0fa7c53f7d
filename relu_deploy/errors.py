"""The errors that people see, each with its exit code and a hint.

    ReluDeployError            exit code, message, hint
    ├── UsageError        2    an option or argument that makes no sense
    ├── InputError        2    a file, model or array that is not what it should be
    │   ├── NothingToVerify    a graph of operators that no reference evaluates
    │   └── TooLong            a graph that takes longer than one from elsewhere may without --timeout
    ├── Unsupported       3    the backend exists but cannot do what was requested by name
    │   └── InputsRejected     it runs the model, but not with these sizes or values of its inputs
    ├── BackendUnavailable 3   the backend or its hardware is not usable here
    ├── AccuracyTooLow    1    a variant that was to be returned missed its gate (from Python; see below)
    └── InternalError     70   a bug in relu_deploy

A check that fails (numbers differ, a gate was missed) is a result, not an error: the command line turns it into exit
code 1. Only a function that would have to return the thing that failed the check raises. Every message is one line that
names the file or option; every hint is one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AccuracyTooLow",
    "BackendUnavailable",
    "InputError",
    "InputsRejected",
    "InternalError",
    "NothingToVerify",
    "ReluDeployError",
    "TooLong",
    "Unsupported",
    "UsageError",
    "missing_package",
    "nearest",
]

EXIT_FINE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_UNUSABLE = 0, 1, 2, 3
#: `EX_SOFTWARE` of sysexits.h, and what a shell reports for a process ended by Ctrl-C.
EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_UNREAD = 70, 130, 141


class ReluDeployError(Exception):
    """An error that a person can act on: `message` says what is wrong, `hint` what to do."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(ReluDeployError):
    """An option or argument that makes no sense."""


class InputError(ReluDeployError):
    """A file, a model or an array that is not what it should be."""


class NothingToVerify(InputError):
    """No output of a graph is computed by operators that the reference evaluator has."""


class TooLong(InputError):
    """A graph that takes, or would take, longer than one from elsewhere may where no `--timeout` is given."""


class Unsupported(ReluDeployError):
    """The backend exists but cannot do what was requested of it by name."""

    exit_code = EXIT_UNUSABLE


class InputsRejected(Unsupported):
    """The backend runs the model, but not with these sizes or values of its inputs, such as an index beyond a table."""


class BackendUnavailable(ReluDeployError):
    """The backend, or the hardware under it, is not usable here."""

    exit_code = EXIT_UNUSABLE


class AccuracyTooLow(ReluDeployError):
    """No variant passes the accuracy gate, so there is none to return."""

    exit_code = EXIT_CHECK_FAILED


class InternalError(ReluDeployError):
    """An error in relu_deploy itself: not one that the user can do anything about but report."""

    exit_code = EXIT_INTERNAL


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the entry of `known` closest to `name`, or lists what there is."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}"


def missing_package(package: str, extra: str | None = None) -> BackendUnavailable:
    """Return the error that says `package` is not installed and which command installs it."""
    what = f"'relu-deploy[{extra}]'" if extra else package
    return BackendUnavailable(f"the Python package {package!r} is not installed", f"pip install {what}")
