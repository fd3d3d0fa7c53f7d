"""Loads a graph into one of ONNX Runtime's GPU providers: CUDA, TensorRT, or TensorRT-RTX's, which is a plug-in.

A session runs on a CUDA stream of ours where cuda-bindings is installed, so that copies, runs and events of others can
be put in order with it. Without that package it runs on a stream of its own and cannot be bound to buffers on the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.cuda import Device, Stream
from relu_deploy.backends.nvidia.driver import Missing
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to
from relu_deploy.backends.onnxruntime.errors import explained, in_words
from relu_deploy.backends.onnxruntime.gpu import OnnxRuntimeGpuSession
from relu_deploy.backends.onnxruntime.probe import FILES, PLUGIN, PROVIDERS, gpu_of
from relu_deploy.backends.onnxruntime.providers import (
    cache_folder,
    default_profile,
    forbid_tf32,
    options_for,
)
from relu_deploy.backends.onnxruntime.session import settings_for
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, ReluDeployError, Unsupported
from relu_deploy.graph import load_model, node_precisions

__all__ = ["load_on_gpu"]


def load_on_gpu(name: str, bundle: Bundle, options: Options, model: str | bytes) -> OnnxRuntimeGpuSession:
    """Return a session of `model`, a file or its bytes, that runs all of it on one provider of GPU `options.device`."""
    gpu = gpu_of(name, options.device)
    if isinstance(gpu, Missing):
        raise BackendUnavailable(f"backend {name!r} is not usable here: {gpu.reason}", gpu.fix)
    import onnxruntime

    settings = settings_for(options)
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    stream = _stream(options.device)
    profile, cache = None, None
    if name != "onnxruntime-cuda":
        profile = default_profile(bundle.inputs)
        cache = cache_folder(name, bundle, model if isinstance(model, bytes) else None, onnxruntime.__version__)
    precisions = frozenset(node_precisions(load_model(bundle.onnx)).values())
    wanted = options_for(
        name,
        options.device,
        stream=None if stream is None else int(stream),
        tf32=options.tf32,
        precisions=precisions,
        profile=profile,
        cache=cache,
    )
    with _one_at_a_time(cache):
        session = _session(name, bundle, options, model, settings, wanted)
    return OnnxRuntimeGpuSession(name, bundle, session, options, gpu, stream, profile)


def _session(name: str, bundle: Bundle, options: Options, model: str | bytes, settings: Any, wanted: dict[str, str]) -> Any:
    import onnxruntime

    provider = PROVIDERS[name]
    named: dict[str, Any] = {"providers": [(provider, wanted)], "enable_fallback": 0}
    if name == "onnxruntime-tensorrt-rtx":
        settings.add_provider_for_devices([_plugin_device(onnxruntime, options.device)], wanted)
        named = {}
    else:
        _open_libraries(name, onnxruntime, options.tf32)
    try:
        return onnxruntime.InferenceSession(model, settings, **named)
    except Exception as error:  # the runtime's exception types share no base class
        raise why_not(error, name, bundle, model, {**named, "enable_fallback": 0} if named else None) from error


def why_not(error: Exception, name: str, bundle: Bundle, model: str | bytes, named: Mapping[str, Any] | None) -> ReluDeployError:
    """Return why there is no session: the provider that did not start, or the nodes that it does not take.

    ONNX Runtime says the same for both. named: what the session was asked for; without its prohibition to fall back, the
    placement tells the two apart. None where it cannot be asked again.
    """
    if named is None or "assigned to the default CPU EP" not in str(error):
        return explained(error, name, bundle)
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(model, settings, **named)
    except Exception:  # then there is no more to learn
        return explained(error, name, bundle)
    if PROVIDERS[name] not in session.get_providers():
        return BackendUnavailable(
            f"backend {name!r} is not usable here: ONNX Runtime could not start {PROVIDERS[name]}",
            "it says why on stderr; relu-deploy doctor looks for the usual reasons",
        )
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != PROVIDERS[name]]
    left = [f"{node.op_type} {node.name!r}" for part in parts for node in part.get_nodes()]
    shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return Unsupported(
        f"{name} has no kernel for {len(left)} nodes of {bundle.name}: {shown}",
        "leave them out of the graph, or use onnxruntime-cpu, which runs all of it",
    )


def _stream(device: int) -> Stream | None:
    """Return a stream on GPU `device`, None where cuda-bindings is not installed."""
    try:
        return Device(device).stream()
    except BackendUnavailable:
        return None


def _open_libraries(name: str, onnxruntime: Any, tf32: bool) -> None:
    """Load what the provider is linked to from the packages that bring it: the system's loader does not look there."""
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    if name != "onnxruntime-tensorrt":
        return
    if not tf32:
        forbid_tf32()
    places = SharedLibraries.here()
    linked = linked_to(Path(str(onnxruntime.__file__)).parent / "capi" / FILES[name])
    tensorrt = [each for each in linked if each.startswith(("libnvinfer", "libnvonnxparser"))]
    # The plugins are opened by name once the provider runs.
    plugins = [each.replace("libnvinfer.", "libnvinfer_plugin.") for each in tensorrt if each.startswith("libnvinfer.")]
    for library in (*tensorrt, *plugins):
        if (file := places.find(library)) is not None:
            with contextlib.suppress(OSError):  # the provider's own error says it better
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _plugin_device(onnxruntime: Any, index: int) -> Any:
    """Return TensorRT-RTX's device on GPU `index`, the plug-in registered. Raises BackendUnavailable when there is none."""
    from importlib import import_module

    plugin = import_module(PLUGIN)
    name = plugin.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # the runtime's exception types share no base class
        if "already registered" not in str(error).lower():
            raise BackendUnavailable(
                f"ONNX Runtime cannot load TensorRT-RTX's provider: {in_words(error)}",
                "relu-deploy doctor says what is missing",
            ) from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise BackendUnavailable(
            "TensorRT-RTX's provider finds no GPU that it runs on", "relu-deploy doctor says what is missing"
        )
    if index >= len(devices):
        raise BackendUnavailable(
            f"TensorRT-RTX's provider offers {len(devices)} GPUs, and none with index {index}", "use a smaller --device"
        )
    return devices[index]


@contextlib.contextmanager
def _one_at_a_time(folder: Path | None) -> Iterator[None]:
    """Hold the lock of a folder of compiled engines: two processes that write one file would spoil it."""
    if folder is None:
        yield
        return
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
