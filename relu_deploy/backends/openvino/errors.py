"""Converts exceptions of OpenVINO, whose messages begin with source locations, to errors of this package."""

from __future__ import annotations

import re

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported

__all__ = ["explained", "in_words"]

#: lines of a message with source locations only
_PLACES = re.compile(r"^(Exception from |Check '.*' failed at |Check '.*' failed$|While validating |\s*$|FrontEnd API failed)")
_OPERATORS = re.compile(r"not.*support|No conversion|unsupported|not registered|No creator", re.IGNORECASE)


def explained(error: Exception, name: str, bundle: Bundle) -> InputError | Unsupported:
    """Return the error for an exception that was raised while a graph was loaded.

    It is an `InputError` for a damaged file, otherwise `Unsupported`.
    """
    words = in_words(error)
    if "Unable to read the model" in words:
        return InputError(f"{bundle.onnx}: {words}", "check the graph with: relu-deploy inspect")
    return Unsupported(f"{name} cannot run {bundle.name}: {words}", "relu-deploy verify --backend reference runs any graph")


def in_words(error: Exception) -> str:
    """Return up to three lines of the message of `error` with the cause, joined to one line."""
    text = re.sub(r"Check '.*?' failed at \S+?:\d+:", "", str(error))
    lines = [line.strip(" -:") for line in text.splitlines()]
    details = [line for line in lines if not _PLACES.match(line)]
    # OpenVINO names the operator that it does not support last.
    named = [line for line in details if _OPERATORS.search(line)]
    return "; ".join(dict.fromkeys((named or details)[:3])) or type(error).__name__
