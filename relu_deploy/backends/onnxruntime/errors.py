"""Converts exceptions of ONNX Runtime, which share no base class and quote its source files, to errors of this package."""

from __future__ import annotations

import re

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.tensors import Feeds

__all__ = ["explained", "in_words", "stopped"]


def explained(error: Exception, name: str, bundle: Bundle) -> InputError | Unsupported:
    """Return the error for an exception that was raised while a graph was loaded.

    Args:
        error: The exception of ONNX Runtime.
        name: Name of the backend.
        bundle: The model.
    """
    if type(error).__name__ in ("InvalidGraph", "InvalidProtobuf"):
        return InputError(f"{bundle.onnx}: {in_words(error)}", "check the graph with: relu-deploy inspect")
    return Unsupported(
        f"{name} cannot run {bundle.name}: {in_words(error)}", "relu-deploy verify --backend reference runs any graph"
    )


def stopped(error: Exception, name: str, title: str, arrays: Feeds) -> Unsupported:
    """Return the error for an exception that was raised by a run, with the shapes of the inputs and the node if it is known.

    Args:
        error: The exception of ONNX Runtime.
        name: Name of the backend.
        title: The model, for the message.
        arrays: The inputs of the run.
    """
    shapes = ", ".join(f"{key} {'x'.join(map(str, array.shape)) or 'scalar'}" for key, array in arrays.items())
    found = re.search(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", str(error), re.DOTALL)
    words = in_words(RuntimeError(found[3])) if found else in_words(error)
    where = f" at {found[1]} node {found[2]!r}" if found else ""
    return Unsupported(
        f"{name} stopped{where} while running {title} on {shapes}: {words}",
        "relu-deploy verify --backend reference says whether the graph takes these sizes and values",
    )


def in_words(error: Exception) -> str:
    """Return the first line of the message of `error`, without source locations and status codes."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = re.sub(r"^/\S+\.(cc|h):\d+ .*?\)( const)? (?=[A-Z\[])", "", line)
    return re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", line)
