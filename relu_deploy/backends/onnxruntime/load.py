"""Loads a graph into ONNX Runtime, on the CPU or through one of its GPU providers."""

from __future__ import annotations

from relu_deploy.backends.base import Options
from relu_deploy.backends.onnxruntime.errors import explained
from relu_deploy.backends.onnxruntime.probe import PROVIDERS
from relu_deploy.backends.onnxruntime.session import OnnxRuntimeSession, settings_for
from relu_deploy.bundle import Bundle
from relu_deploy.graph.model import load_model, to_bytes
from relu_deploy.graph.taps import with_taps

__all__ = ["load"]


def load(name: str, bundle: Bundle, options: Options) -> OnnxRuntimeSession:
    model: str | bytes = str(bundle.onnx)
    if options.taps:
        model = to_bytes(with_taps(load_model(bundle.onnx), [relu.output for relu in options.taps]))
    if name != "onnxruntime-cpu":
        from relu_deploy.backends.onnxruntime.load_gpu import load_on_gpu

        return load_on_gpu(name, bundle, options, model)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(model, settings_for(options), providers=[PROVIDERS[name]], enable_fallback=0)
    except Exception as error:  # the runtime's exception types share no base class
        raise explained(error, name, bundle) from error
    return OnnxRuntimeSession(name, bundle, session, options)
