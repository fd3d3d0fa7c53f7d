"""Loads a graph into the reference evaluator."""

from __future__ import annotations

from relu_deploy.backends.base import Options
from relu_deploy.backends.reference.session import ReferenceSession
from relu_deploy.bundle import Bundle
from relu_deploy.graph.model import read_model
from relu_deploy.graph.taps import with_taps

__all__ = ["load"]


def load(_: str, bundle: Bundle, options: Options) -> ReferenceSession:
    """Return a session for the graph of `bundle`.

    Raises:
        Unsupported: If a node of the graph cannot be evaluated.
    """
    model = read_model(bundle.onnx)
    return ReferenceSession(bundle, with_taps(model, [relu.output for relu in options.taps]) if options.taps else model)
