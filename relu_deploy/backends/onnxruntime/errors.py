"""Converts exceptions of ONNX Runtime, which share no base class and quote its source files, to errors of this package."""

from __future__ import annotations

import re

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, InputsRejected, Unsupported
from relu_deploy.tensors import Feeds

__all__ = ["load_error", "message_of", "run_error"]


def load_error(error: Exception, name: str, bundle: Bundle) -> InputError | Unsupported:
    """Return the error for an exception that was raised while a graph was loaded.

    Args:
        error: The exception of ONNX Runtime.
        name: Name of the backend.
        bundle: The model.
    """
    if type(error).__name__ in ("InvalidGraph", "InvalidProtobuf"):
        return InputError(f"{bundle.onnx}: {message_of(error)}", "check the graph with: relu-deploy inspect")
    hint = "relu-deploy verify --backend reference runs any graph"
    if "is not a registered function/op" in str(error):
        hint = "the operator comes with a library of its own: remove its node, or write it with standard operators"
    return Unsupported(f"{name} cannot run {bundle.name}: {message_of(error)}", hint)


def run_error(error: Exception, name: str, title: str, arrays: Feeds) -> Unsupported:
    """Return the error for an exception that was raised by a run, with the shapes of the inputs and the node if it is known.

    Args:
        error: The exception of ONNX Runtime.
        name: Name of the backend.
        title: The model, for the message.
        arrays: The inputs of the run.
    """
    shapes = ", ".join(f"{key} {'x'.join(map(str, array.shape)) or 'scalar'}" for key, array in arrays.items())
    found = re.search(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", str(error), re.DOTALL)
    message = message_of(RuntimeError(found[3])) if found else message_of(error)
    kind = InputsRejected if type(error).__name__ == "InvalidArgument" else Unsupported
    where = f" at {found[1]} node {found[2]!r}" if found else ""
    return kind(
        f"{name} stopped{where} while running {title} on {shapes}: {message}",
        "relu-deploy verify --backend reference says whether the graph takes these sizes and values",
    )


def message_of(error: Exception) -> str:
    """Return the first line of the message of `error`, without source locations and status codes."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", line)
    # A failed assertion names its place and its condition before the message.
    line = re.sub(r"^/\S+\.(cc|h):\d+ .* was false\. (?=\S)", "", line)
    return re.sub(r"^/\S+\.(cc|h):\d+ .*?\)( const)? (?=[A-Z\[])", "", line)
