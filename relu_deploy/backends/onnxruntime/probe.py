"""Probes ONNX Runtime's execution providers: whether each can run here, and if not, the reason and a fix.

The checks are, in this order: packages, NVIDIA's driver and GPU, the CUDA version of the driver and the package, and the
libraries that the provider's file is linked to. No provider is loaded and no session is created, because loading a provider
with the wrong libraries can terminate the process. `onnxruntime.get_available_providers` lists those that it was built with,
whether they can run or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relu_deploy.backends.base import Capabilities, Probe
from relu_deploy.backends.nvidia.driver import Driver, Gpu, Missing, choose_gpu, find_driver, find_gpu, too_old
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to
from relu_deploy.backends.onnxruntime.plugins import CUDA_LIBRARIES, PLUGINS, devices_of, installed, register, unavailable
from relu_deploy.backends.threads import alternative_counts
from relu_deploy.backends.wheels import install_command

__all__ = ["FLAVORS", "PROVIDERS", "capabilities", "gpu_of", "installed_flavors", "needs_nvidia", "probe", "runs_on_rtx"]

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cpu": "CPUExecutionProvider",
        "onnxruntime-cuda": "CUDAExecutionProvider",
        "onnxruntime-tensorrt": "TensorrtExecutionProvider",
        **{name: plugin.provider for name, plugin in PLUGINS.items()},
    }
)
FLAVORS = ("onnxruntime", "onnxruntime-gpu")
FILES: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cuda": "libonnxruntime_providers_cuda.so",
        "onnxruntime-tensorrt": "libonnxruntime_providers_tensorrt.so",
    }
)
#: libraries that a provider opens while it runs, in addition to those that it is linked to
OPENED: Mapping[str, tuple[str, ...]] = MappingProxyType({"onnxruntime-cuda": ("libcudnn.so.9",), "onnxruntime-tensorrt": ()})
#: name patterns of the libraries of the driver other than libcuda, of CUDA and of TensorRT; all others are the system's
_DRIVER = re.compile(r"libnvidia-")
_CUDA = CUDA_LIBRARIES
_TENSORRT = re.compile(r"lib(nvinfer|nvonnxparser)")
#: the oldest compute capability that each major version of CUDA, and TensorRT 10 and 11, support
OLDEST: Mapping[int, tuple[int, int]] = MappingProxyType({12: (5, 0), 13: (7, 5)})
OLDEST_TENSORRT = (7, 5)


def capabilities(name: str) -> Capabilities:
    """Return what the backend called `name` supports."""
    on_gpu = PLUGINS[name].kind == "GPU" if name in PLUGINS else name != "onnxruntime-cpu"
    targets = {"onnxruntime-cpu": ("cpu",), "onnxruntime-openvino": ("cpu",), "onnxruntime-cuda": ("cuda",)}.get(name, ())
    return Capabilities(
        on_gpu=on_gpu,
        # On a GPU the profile has the times of the launches, and a plug-in runs the graph as one node.
        times_layers=name == "onnxruntime-cpu",
        platform="onnxruntime_onnx",
        targets=targets,
        tunables=_tunables() if name == "onnxruntime-cpu" else (),
        extra="cpu" if name == "onnxruntime-cpu" else "",
        # The backend openvino is compared instead.
        compared_by_default=name != "onnxruntime-openvino",
        placement="openvino" if name == "onnxruntime-openvino" else "",
    )


def _tunables() -> tuple[Mapping[str, Any], ...]:
    # Above "extended" float32 convolutions run in a blocked layout, which costs small models more than it saves.
    return (*({"threads": count} for count in alternative_counts()), {"spin": False}, {"optimization": "extended"})


def needs_nvidia(name: str) -> bool:
    """Return whether the backend called `name` requires an NVIDIA GPU."""
    return name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")


def probe(name: str, device: int = 0) -> Probe:
    """Return whether the backend called `name` is usable on GPU `device`, or on the CPU."""
    flavors = installed_flavors()
    shown = " and ".join(flavors.values())
    if len(flavors) == 2:
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'relu-deploy[{_extra(name)}]'"
        reason = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        return Probe(name, False, version=shown, reason=reason, fix=fix)
    if name == "onnxruntime-cpu":
        module = _import(flavors)
        if isinstance(module, Missing):
            return Probe(name, False, version=shown, reason=module.reason, fix=module.fix)
        return Probe(name, True, version=shown, device="CPU")
    if name in PLUGINS and not needs_nvidia(name):
        return _probe_plugin(name, flavors)
    found = gpu_of(name, device)
    if isinstance(found, Gpu):
        return Probe(name, True, version=shown, device=str(found))
    there = find_gpu(device)
    described = str(there) if isinstance(there, Gpu) else ""
    return Probe(name, False, version=shown, device=described, reason=found.reason, fix=found.fix)


def gpu_of(name: str, index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index if the backend called `name` can run on it, else why it cannot."""
    # Hardware is checked first: installing packages does not help without it.
    driver = find_driver()
    if isinstance(driver, Missing):
        return driver
    gpu = choose_gpu(driver, index)
    if isinstance(gpu, Missing):
        return gpu
    check = _check_rtx if name in PLUGINS else _check_built_in
    return check(name, installed_flavors(), driver, gpu) or gpu


def installed_flavors() -> dict[str, str]:
    """Return the versions of the installed packages that provide the module onnxruntime, by name."""
    found = {}
    for flavor in FLAVORS:
        try:
            found[flavor] = version(flavor)
        except PackageNotFoundError:
            continue
    return found


def runs_on_rtx(gpu: Gpu) -> bool:
    """Return whether TensorRT-RTX supports this GPU: RTX GPUs of the generations Ampere, Ada, Blackwell and later."""
    return gpu.capability in ((8, 6), (8, 9)) or gpu.capability >= (12, 0)


def _extra(name: str) -> str:
    if not needs_nvidia(name):
        return "cpu"
    return "cpu,rtx" if name in PLUGINS else "cuda"


def _import(flavors: Mapping[str, str]) -> Any | Missing:
    """Return the module onnxruntime, or why there is none."""
    if not flavors:
        return Missing("onnxruntime is not installed", "pip install 'relu-deploy[cpu]'")
    try:
        import onnxruntime
    except Exception as error:  # mixed files of two packages or a missing system library raise any exception
        (flavor,) = flavors
        return Missing(
            f"{flavor} is installed but cannot be imported: {error}", f"pip install --force-reinstall --no-deps {flavor}"
        )
    return onnxruntime


# ---------------------------------------------------------------- CUDA and TensorRT, which come with onnxruntime-gpu


def _check_built_in(name: str, flavors: Mapping[str, str], driver: Driver, gpu: Gpu) -> Missing | None:
    if not flavors:
        return Missing("onnxruntime-gpu is not installed", install_command(_extra(name)))
    onnxruntime = _import(flavors)
    if isinstance(onnxruntime, Missing):
        return onnxruntime
    ((flavor, release),) = flavors.items()
    package = f"{flavor} {release}"
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        if flavor == "onnxruntime-gpu":
            return Missing(f"this build of {package} has no {PROVIDERS[name]}", "pip install --force-reinstall onnxruntime-gpu")
        return Missing(
            f"{package} is the CPU flavor, which has no {PROVIDERS[name]}",
            f"pip uninstall -y onnxruntime && pip install 'relu-deploy[{_extra(name)}]'",
        )
    cuda = int(str(getattr(onnxruntime, "cuda_version", "") or "0").partition(".")[0] or 0)
    if (old := too_old(driver, cuda, package)) is not None:
        return old
    oldest = OLDEST_TENSORRT if name == "onnxruntime-tensorrt" else OLDEST.get(cuda, (0, 0))
    if gpu.capability < oldest:
        library = "TensorRT" if name == "onnxruntime-tensorrt" else f"{package} (CUDA {cuda})"
        return Missing(
            f"{library} needs compute capability {oldest[0]}.{oldest[1]} or newer, and this is {gpu}", "use a newer GPU"
        )
    file = Path(str(onnxruntime.__file__)).parent / "capi" / FILES[name]
    return _check_library(name, package, release, file)


def _check_library(name: str, package: str, release: str, file: Path) -> Missing | None:
    """Return why libraries that `file` is linked to are not found, None if all are. DLLs of Windows are not checked."""
    places = SharedLibraries.here()
    needed = [each for each in linked_to(file) if _CUDA.match(each) or _TENSORRT.match(each)]
    missing = places.missing([*needed, *(OPENED[name] if needed else ())])
    cuda = [each for each in missing if _CUDA.match(each)]
    tensorrt = [each for each in missing if _TENSORRT.match(each)]
    if cuda:
        # onnxruntime-gpu[cuda] does not install cuBLAS and cuDNN.
        half = any("cublas" in each for each in cuda) and not any("cudart" in each for each in cuda)
        note = "; its extra [cuda] alone leaves out cuBLAS and cuDNN" if half else ""
        return Missing(
            f"{package} needs {', '.join(cuda)}, which {_is_are(cuda)} not found{note}",
            f"pip install 'onnxruntime-gpu[cuda,cudnn]=={release}'",
        )
    if tensorrt:
        return _tensorrt_mismatch(package, tensorrt[0], places)
    return None


def _tensorrt_mismatch(package: str, library: str, places: SharedLibraries) -> Missing:
    """Return why the TensorRT library that the provider is linked to is unavailable."""
    major = library.rpartition(".")[2]
    others = [path.name.rpartition(".")[2] for path in places.like("nvinfer") if path.name != library]
    reason = f"{package} is linked to TensorRT {major} ({library}), which is not found"
    install = f"pip install 'tensorrt-cu13=={major}.*'"
    if others:
        return Missing(
            f"{reason}; TensorRT {others[-1]}, which is installed, is not compatible with it",
            f"use --backend tensorrt, which runs TensorRT {others[-1]}; or in another environment: {install}",
        )
    return Missing(reason, f"{install}, where NVIDIA's own package index can be reached")


def _is_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


# ---------------------------------------------------------------- plug-ins


def _probe_plugin(name: str, flavors: Mapping[str, str]) -> Probe:
    """Return whether a plug-in that does not need NVIDIA's driver has a device here; the plug-in is registered."""
    plugin, shown = PLUGINS[name], " and ".join(flavors.values())
    onnxruntime = _import(flavors)
    missing = onnxruntime if isinstance(onnxruntime, Missing) else None
    if missing is None:
        ((flavor, release),) = flavors.items()
        missing = unavailable(onnxruntime, f"{flavor} {release}", plugin) or register(onnxruntime, plugin)
    if missing is not None:
        return Probe(name, False, version=shown, reason=missing.reason, fix=missing.fix)
    shown = f"{shown}, plug-in {next(iter(installed(plugin).values()))}"
    devices = devices_of(onnxruntime, plugin)
    if not devices:
        reason = f"{plugin.provider} finds no device here"
        return Probe(name, False, version=shown, reason=reason, fix=f"run it on a machine with {plugin.needs}")
    metadata = devices[0].ep_metadata
    return Probe(name, True, version=shown, device=str(metadata.get("FULL_DEVICE_NAME") or plugin.kind))


def _check_rtx(name: str, flavors: Mapping[str, str], driver: Driver, gpu: Gpu) -> Missing | None:
    plugin = PLUGINS[name]
    if not runs_on_rtx(gpu):
        return Missing(
            f"ONNX Runtime's TensorRT-RTX provider runs on compute capability 8.6, 8.9, and 12.0 and newer, and this is {gpu}",
            "use --backend tensorrt or onnxruntime-cuda on this GPU",
        )
    if not flavors:
        return Missing("onnxruntime is not installed", install_command("cpu,rtx"))
    onnxruntime = _import(flavors)
    if isinstance(onnxruntime, Missing):
        return onnxruntime
    ((flavor, version_of_it),) = flavors.items()
    if (missing := unavailable(onnxruntime, f"{flavor} {version_of_it}", plugin)) is not None:
        return missing
    ((package, release),) = installed(plugin).items()
    if (old := too_old(driver, plugin.distributions[package], f"{package} {release}")) is not None:
        return old
    places, linked = SharedLibraries.here(), plugin.linked_to()
    if missing_here := places.missing([each for each in linked if _DRIVER.match(each)]):
        # A container gets only the driver libraries of its NVIDIA_DRIVER_CAPABILITIES.
        return Missing(
            f"{package} {release} needs {', '.join(missing_here)} of NVIDIA's driver, which {_is_are(missing_here)} not found",
            "start the container with -e NVIDIA_DRIVER_CAPABILITIES=compute,utility, or install the whole driver",
        )
    if missing_here := [each for each in linked if _CUDA.match(each) and plugin.find(each, places) is None]:
        return Missing(
            f"{package} {release} needs {', '.join(missing_here)}, which {_is_are(missing_here)} not found",
            f"pip install 'nvidia-cuda-runtime=={plugin.distributions[package]}.*'",
        )
    return None
