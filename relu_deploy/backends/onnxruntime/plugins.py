"""Execution providers that are installed as plug-in libraries by other packages; `PLUGINS` describes each.

A plug-in checks the requirements of its devices itself: after it is registered, it lists the devices that it supports.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.driver import Missing
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to
from relu_deploy.backends.onnxruntime.errors import message_of

__all__ = ["PLUGINS", "Plugin", "devices_of", "installed", "open_plugin_libraries", "register", "unavailable"]

CUDA_LIBRARIES = re.compile(r"lib(cublas|cudnn|cudart|cufft|curand|nvrtc|nvJitLink)")

#: OpenVINO's precision hints by precision; others, such as int8 with its float32 nodes, use f32
HINTS = {"float16": "f16", "bfloat16": "bf16"}


def _no_options(_: Options, __: str) -> dict[str, str]:
    return {}


def _openvino(options: Options, precision: str) -> dict[str, str]:
    # The default precision depends on the processor: bfloat16 with AVX512-BF16, even for float32 models.
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32"),
        "EXECUTION_MODE_HINT": "ACCURACY",
        # With one thread OpenVINO does not report shape mismatches; see `openvino.session`.
        "INFERENCE_NUM_THREADS": str(max(2, options.thread_count)),
        "NUM_STREAMS": "1",
    }
    return {"load_config": json.dumps({"CPU": settings})}


@dataclass(frozen=True)
class Plugin:
    """One execution provider.

    Attributes:
        provider: Its name in a session.
        module: The Python package with `get_library_path`.
        distributions: Names of its distributions, each with the major version of CUDA that it was built for, 0 for none.
        install: Argument of `pip install`.
        kind: ONNX Runtime's type of its devices: "CPU" or "GPU".
        needs: Hardware that it requires, for hints.
        options: Function that returns provider options for the session's options and the precision of the graph.
    """

    provider: str
    module: str
    distributions: Mapping[str, int]
    install: str
    kind: str
    needs: str
    options: Callable[[Options, str], dict[str, str]] = field(default=_no_options)

    @property
    def folder(self) -> Path | None:
        """The folder of its package, None if it is not installed."""
        spec = find_spec(self.module)
        return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None

    def linked_to(self) -> tuple[str, ...]:
        """Return the names of the libraries that the plug-in's own libraries are linked to."""
        files = sorted(self.folder.glob("libonnxruntime_providers_*.so")) if self.folder else []
        return tuple(dict.fromkeys(name for file in files for name in linked_to(file)))

    def find(self, library: str, places: SharedLibraries) -> Path | None:
        """Return the file of a library that the plug-in is linked to, None if there is none.

        A wheel has no symbolic links, so the package may contain it under the name of its full version only.
        """
        own = sorted(self.folder.glob(f"{library}.*")) if self.folder else []
        return places.find(library) or next(iter(own), None)


PLUGINS: Mapping[str, Plugin] = MappingProxyType(
    {
        "onnxruntime-openvino": Plugin(
            "OpenVINOExecutionProvider",
            "onnxruntime_ep_openvino",
            {"onnxruntime-ep-openvino": 0},
            "onnxruntime-ep-openvino",
            "CPU",
            "an x86-64 or ARM64 processor",
            _openvino,
        ),
        "onnxruntime-webgpu": Plugin(
            "WebGpuExecutionProvider",
            "onnxruntime_ep_webgpu",
            {"onnxruntime-ep-webgpu": 0},
            "onnxruntime-ep-webgpu",
            "GPU",
            "a GPU with a Vulkan driver (Debian: apt install mesa-vulkan-drivers), Direct3D 12 or Metal",
        ),
        "onnxruntime-mlx": Plugin(
            "MLXExecutionProvider", "onnxruntime_ep_mlx", {"onnxruntime-ep-mlx": 0}, "onnxruntime-ep-mlx", "GPU", "Apple silicon"
        ),
        "onnxruntime-tensorrt-rtx": Plugin(
            "NvTensorRTRTXExecutionProvider",
            "onnxruntime_ep_nv_tensorrt_rtx",
            {"onnxruntime-ep-nv-tensorrt-rtx-cu13": 13, "onnxruntime-ep-nv-tensorrt-rtx-cu12": 12},
            "'relu-deploy[rtx]'",
            "GPU",
            "a GPU of compute capability 8.6, 8.9, or 12.0 and newer",
        ),
    }
)


def installed(plugin: Plugin) -> dict[str, str]:
    """Return the versions of the plug-in's installed distributions, by name."""
    found = {}
    for distribution in plugin.distributions:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def unavailable(onnxruntime: Any, flavor: str, plugin: Plugin) -> Missing | None:
    """Return why the package of a plug-in cannot be loaded, None if it can. Nothing is loaded.

    Args:
        onnxruntime: The module.
        flavor: Name and version of the package that provides the module.
        plugin: The plug-in.
    """
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        package = flavor.partition(" ")[0]
        return Missing(f"{flavor} does not support plug-in providers", f"pip install --upgrade '{package}>=1.24'")
    builds = installed(plugin)
    spec = find_spec(plugin.module)
    if not builds or spec is None or not spec.submodule_search_locations:
        name = next(iter(plugin.distributions))
        # There is a package for each version of CUDA; the message names the one without the suffix.
        name = name.rpartition("-cu")[0] if len(plugin.distributions) > 1 else name
        return Missing(f"{name} is not installed", f"pip install {plugin.install}")
    if len(builds) > 1:
        return Missing(
            f"{' and '.join(builds)} are both installed and overwrite each other's files",
            f"pip uninstall -y {' '.join(builds)} && pip install {plugin.install}",
        )
    return None


def register(onnxruntime: Any, plugin: Plugin) -> Missing | None:
    """Register the plug-in's library with ONNX Runtime. Return why it cannot be loaded, None if it is loaded."""
    module = import_module(plugin.module)
    try:
        onnxruntime.register_execution_provider_library(plugin.provider, module.get_library_path())
    except Exception as error:  # the runtime's exception types share no base class
        if "already registered" not in str(error).lower():
            packages = " ".join(f"{name} {release}" for name, release in installed(plugin).items())
            return Missing(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {plugin.provider} of {packages or plugin.module}: {message_of(error)}",
                f"pip install --upgrade onnxruntime {next(iter(installed(plugin)), plugin.install)}",
            )
    return None


def open_plugin_libraries(plugin: Plugin) -> None:
    """Load the CUDA libraries that a plug-in is linked to from Python packages, which the system's loader does not search."""
    places = SharedLibraries.here()
    for library in plugin.linked_to():
        file = plugin.find(library, places) if CUDA_LIBRARIES.match(library) else None
        if file is not None:
            with contextlib.suppress(OSError):  # the plug-in reports the error in more detail
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def devices_of(onnxruntime: Any, plugin: Plugin) -> list[Any]:
    """Return the devices of a registered plug-in, in its order."""
    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == plugin.provider and str(device.device.type).endswith(plugin.kind)
    ]
