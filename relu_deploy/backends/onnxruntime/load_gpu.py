"""Loads a graph into one of ONNX Runtime's GPU providers: CUDA, TensorRT, or TensorRT-RTX, which is a plug-in.

If cuda-bindings is installed, the session runs on a CUDA stream that is created here, so that copies and events can be ordered
with its runs. Without that package it runs on its own stream and cannot be bound to buffers on the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.cuda import Device, Stream
from relu_deploy.backends.nvidia.driver import Missing
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to
from relu_deploy.backends.nvidia.tf32 import forbid_tf32, require_tf32
from relu_deploy.backends.onnxruntime.errors import load_error
from relu_deploy.backends.onnxruntime.gpu import OnnxRuntimeGpuSession
from relu_deploy.backends.onnxruntime.placement import require_provider
from relu_deploy.backends.onnxruntime.plugins import PLUGINS, devices_of, open_plugin_libraries, register
from relu_deploy.backends.onnxruntime.probe import FILES, PROVIDERS, gpu_of
from relu_deploy.backends.onnxruntime.providers import cache_folder, default_profile, options_for
from relu_deploy.backends.onnxruntime.session import settings_for
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable
from relu_deploy.graph import node_precisions, read_model
from relu_deploy.storage.engine_files import remove_untrusted

__all__ = ["load_on_gpu"]


def load_on_gpu(name: str, bundle: Bundle, options: Options, model: str | bytes) -> OnnxRuntimeGpuSession:
    """Return a session that runs all of a graph on one GPU provider.

    Args:
        name: Name of the backend.
        bundle: The model.
        options: Options of the session.
        model: Path of the graph, or its serialized form.

    Raises:
        BackendUnavailable: If the provider cannot run on GPU `options.device`.
        InputError: If `model` is not a valid graph.
        Unsupported: If the provider cannot run the graph or a node of it.
    """
    gpu = gpu_of(name, options.device)
    if isinstance(gpu, Missing):
        raise BackendUnavailable(f"backend {name!r} is not usable here: {gpu.reason}", gpu.fix)
    if options.tf32:
        require_tf32(name)
    import onnxruntime

    settings = settings_for(options)
    stream = _stream(options.device)
    profile, cache = None, None
    if name != "onnxruntime-cuda":
        profile = default_profile(bundle.inputs)
        cache = cache_folder(name, bundle, model if isinstance(model, bytes) else None, onnxruntime.__version__)
    precisions = frozenset(node_precisions(read_model(bundle.onnx)).values())
    provider_options = options_for(
        name,
        options.device,
        stream=None if stream is None else int(stream),
        tf32=options.tf32,
        precisions=precisions,
        profile=profile,
        cache=cache,
    )
    with _one_at_a_time(cache):
        if cache is not None:
            remove_untrusted(cache)
        session = _session(name, bundle, options, model, settings, provider_options, stream)
    made = OnnxRuntimeGpuSession(name, bundle, session, options, gpu, stream, profile)
    made.trust_engines(cache)
    return made


def _session(
    name: str,
    bundle: Bundle,
    options: Options,
    model: str | bytes,
    settings: Any,
    provider_options: dict[str, str],
    stream: Stream | None,
) -> Any:
    import onnxruntime

    provider = PROVIDERS[name]
    named: dict[str, Any] = {"providers": [(provider, provider_options)], "enable_fallback": 0}
    if name in PLUGINS:
        open_plugin_libraries(PLUGINS[name])
        gpu = None if stream is None else stream.device
        settings.add_provider_for_devices([_plugin_device(onnxruntime, name, gpu, options.device)], provider_options)
        named = {}
    else:
        _open_libraries(name, onnxruntime, options.tf32)
    try:
        session = onnxruntime.InferenceSession(model, settings, **named)
    except Exception as error:  # the runtime's exception types share no base class
        raise load_error(error, name, bundle) from error
    # Nodes of shape arithmetic belong on the CPU, so the fallback stays enabled and the placement is checked afterwards.
    require_provider(name, provider, session, bundle)
    return session


def _stream(device: int) -> Stream | None:
    """Return a stream on GPU `device`, None if cuda-bindings is not installed."""
    try:
        return Device(device).stream()
    except BackendUnavailable:
        return None


def _open_libraries(name: str, onnxruntime: Any, tf32: bool) -> None:
    """Load the libraries that the provider is linked to from Python packages, which the system's loader does not search."""
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    if name != "onnxruntime-tensorrt":
        return
    if not tf32:
        forbid_tf32()
    places = SharedLibraries.here()
    linked = linked_to(Path(str(onnxruntime.__file__)).parent / "capi" / FILES[name])
    tensorrt = [each for each in linked if each.startswith(("libnvinfer", "libnvonnxparser"))]
    # The provider opens the plug-in library by name when it starts.
    plugins = [each.replace("libnvinfer.", "libnvinfer_plugin.") for each in tensorrt if each.startswith("libnvinfer.")]
    for library in (*tensorrt, *plugins):
        if (file := places.find(library)) is not None:
            with contextlib.suppress(OSError):  # the provider reports the error in more detail
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _plugin_device(onnxruntime: Any, name: str, gpu: Device | None, index: int) -> Any:
    """Return the plug-in's device that is GPU `index` in CUDA's order. Raises BackendUnavailable if there is none."""
    plugin = PLUGINS[name]
    if (missing := register(onnxruntime, plugin)) is not None:
        raise BackendUnavailable(missing.reason, missing.fix)
    devices = devices_of(onnxruntime, plugin)
    if not devices:
        raise BackendUnavailable(f"{plugin.provider} finds no device: it needs {plugin.needs}", "relu-deploy doctor")
    # The plug-in orders GPUs by PCI address, CUDA by speed.
    addresses = [_address(device.device.metadata.get("pci_bus_id", "")) for device in devices]
    if gpu is not None and any(addresses):
        mine = _address(gpu.bus_id())
        if mine not in addresses:
            raise BackendUnavailable(f"{plugin.provider} does not offer GPU {index} (PCI address {mine})", "use another --device")
        return devices[addresses.index(mine)]
    if index >= len(devices):
        raise BackendUnavailable(
            f"{plugin.provider} offers {len(devices)} GPUs, and none with index {index}", "use a smaller --device"
        )
    return devices[index]


def _address(text: str) -> str:
    """Return a normalized PCI address: CUDA writes domains with four digits, other libraries with eight, in either case."""
    domain, _, rest = str(text).strip().lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest and all(digit in "0123456789abcdef" for digit in domain) else ""


@contextlib.contextmanager
def _one_at_a_time(folder: Path | None) -> Iterator[None]:
    """Hold the lock of a folder of compiled engines, so that two processes do not write the same file."""
    if folder is None:
        yield
        return
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
