"""Loads a graph into ONNX Runtime with one execution provider."""

from __future__ import annotations

from typing import Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.onnxruntime.errors import load_error
from relu_deploy.backends.onnxruntime.placement import require_provider
from relu_deploy.backends.onnxruntime.plugins import PLUGINS, devices_of, register
from relu_deploy.backends.onnxruntime.probe import PROVIDERS, needs_nvidia
from relu_deploy.backends.onnxruntime.session import OnnxRuntimeSession, settings_for
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import precision_of
from relu_deploy.graph.taps import tapped_bytes

__all__ = ["load"]

#: level of ONNX Runtime's log
FATAL = 4


def load(name: str, bundle: Bundle, options: Options) -> OnnxRuntimeSession:
    """Return a session that runs all of the graph of `bundle` on the execution provider of backend `name`.

    Raises:
        BackendUnavailable: If the provider cannot start or has no such device.
        InputError: If the file is not a valid graph.
        Unsupported: If the provider cannot run the graph or a node of it.
    """
    model: str | bytes = str(bundle.onnx)
    if options.taps:
        model = tapped_bytes(read_model(bundle.onnx), [relu.output for relu in options.taps])
    if needs_nvidia(name):
        from relu_deploy.backends.onnxruntime.load_gpu import load_on_gpu

        return load_on_gpu(name, bundle, options, model)
    import onnxruntime

    settings, named = settings_for(options), {"providers": [PROVIDERS[name]], "enable_fallback": 0}
    if name in PLUGINS:
        settings.add_provider_for_devices(*_device(onnxruntime, name, bundle, options))
        named = {}
    else:
        # What it logs is raised as well, and would reach the terminal with the names of nodes as they are.
        settings.log_severity_level = FATAL
    try:
        session = onnxruntime.InferenceSession(model, settings, **named)
    except Exception as error:  # the runtime's exception types share no base class
        raise load_error(error, name, bundle) from error
    if name in PLUGINS:
        require_provider(name, PROVIDERS[name], session, bundle)
    return OnnxRuntimeSession(name, bundle, session, options)


def _device(onnxruntime: Any, name: str, bundle: Bundle, options: Options) -> tuple[list[Any], dict[str, str]]:
    """Return the plug-in's device and its provider options. Raises BackendUnavailable if it has no such device."""
    plugin = PLUGINS[name]
    if (missing := register(onnxruntime, plugin)) is not None:
        raise BackendUnavailable(f"backend {name!r} is not usable here: {missing.reason}", missing.fix)
    devices = devices_of(onnxruntime, plugin)
    index = options.device if plugin.kind == "GPU" else 0
    if index >= len(devices):
        raise BackendUnavailable(
            f"backend {name!r} is not usable here: {plugin.provider} offers {len(devices)} devices, and none with index {index}",
            f"run it on a machine with {plugin.needs}" if not devices else "use a smaller --device",
        )
    return [devices[index]], plugin.options(options, precision_of(read_model(bundle.onnx)))
