"""What ONNX Runtime raises, as errors for people: its exception types share no base class and quote its source files."""

from __future__ import annotations

import re

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported

__all__ = ["explained", "in_words"]


def explained(error: Exception, name: str, bundle: Bundle) -> InputError | Unsupported:
    """Return what ONNX Runtime raised as an error for people."""
    if type(error).__name__ in ("InvalidGraph", "InvalidProtobuf"):
        return InputError(f"{bundle.onnx}: {in_words(error)}", "check the graph with: relu-deploy inspect")
    return Unsupported(
        f"{name} cannot run {bundle.name}: {in_words(error)}", "relu-deploy verify --backend reference runs any graph"
    )


def in_words(error: Exception) -> str:
    """Return the first line of what ONNX Runtime raised, without the place in its source and its own codes."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = re.sub(r"^/\S+\.(cc|h):\d+ .*?\)( const)? (?=[A-Z\[])", "", line)
    return re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", line)
