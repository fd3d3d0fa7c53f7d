"""Loads a graph into the reference evaluator."""

from __future__ import annotations

from relu_deploy.backends.base import Options, Session
from relu_deploy.backends.reference.delegate import Delegate
from relu_deploy.backends.reference.session import ReferenceSession
from relu_deploy.bundle import Bundle
from relu_deploy.graph.model import read_model
from relu_deploy.graph.taps import plain_taps, with_taps

__all__ = ["load"]


def load(_: str, bundle: Bundle, options: Options) -> ReferenceSession:
    """Return a session for the graph of `bundle`.

    Raises:
        Unsupported: If a node of the graph cannot be evaluated, and `options` name no backend that runs it.
    """
    model = read_model(bundle.onnx)
    names = [relu.output for relu in options.taps]
    taps = plain_taps(model, names)
    if taps is None:
        model, taps = with_taps(model, names), []
    if not options.delegate:
        return ReferenceSession(bundle, model, taps=taps)

    def load_node(piece: Bundle) -> Session:
        from relu_deploy.backends.registry import load as load_on

        same = {"threads": options.threads, "device": options.device, "optimization": options.optimization}
        return load_on(piece, options.delegate, **same)

    return ReferenceSession(bundle, model, Delegate(model, load_node), taps)
