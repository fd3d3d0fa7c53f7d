"""Loads an engine of TensorRT or TensorRT-RTX: the cached one of the bundle, or one that is built now."""

from __future__ import annotations

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.tensorrt.building.engine_cache import engine_for
from relu_deploy.backends.tensorrt.probe import probe
from relu_deploy.backends.tensorrt.session import TensorRtSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, Unsupported

__all__ = ["load", "load_session"]


def load(name: str, bundle: Bundle, options: Options) -> TensorRtSession:
    """Return a session of the cached engine of `bundle`, or of one that is built now.

    Raises:
        BackendUnavailable: If the library cannot run on GPU `options.device`.
        Unsupported: If Relus are tapped, or the engine cannot be built or used.
    """
    found = probe(name, options.device)
    if not found.usable:
        raise BackendUnavailable(f"backend {name!r} is not usable here: {found.reason}", found.fix)
    return load_session(name, bundle, options)


def load_session(name: str, bundle: Bundle, options: Options) -> TensorRtSession:
    """Return a session of the engine for `bundle`, without checking that the library can run here.

    Raises:
        Unsupported: If Relus are tapped, or the engine cannot be built or used.
    """
    if options.taps:
        raise Unsupported(
            f"{name} cannot show the Relus inside {bundle.title}: an engine exposes only its outputs",
            "verify its outputs, or the same graph with --backend onnxruntime-cuda",
        )
    engine = engine_for(name, bundle, device=options.device)
    return TensorRtSession(name, bundle, engine, Device(options.device))
