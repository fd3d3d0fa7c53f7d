"""Which of ONNX Runtime's execution providers can run here: why one is unavailable, and what to do about it.

Looked at are, in this order: the packages, NVIDIA's driver and GPU, the CUDA version both sides speak, and whether every
library is found that the provider's file says it is linked to. No provider is loaded for it and no session made, because
a provider that is loaded with the wrong libraries can end the process. ONNX Runtime itself lists providers that it was
built with, whether they can run or not.
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

__all__ = ["FLAVOURS", "PROVIDERS", "capabilities", "gpu_of", "installed_flavours", "needs_nvidia", "probe", "runs_on_rtx"]

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cpu": "CPUExecutionProvider",
        "onnxruntime-cuda": "CUDAExecutionProvider",
        "onnxruntime-tensorrt": "TensorrtExecutionProvider",
        **{name: plugin.provider for name, plugin in PLUGINS.items()},
    }
)
FLAVOURS = ("onnxruntime", "onnxruntime-gpu")
FILES: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cuda": "libonnxruntime_providers_cuda.so",
        "onnxruntime-tensorrt": "libonnxruntime_providers_tensorrt.so",
    }
)
#: what a provider opens by itself once it runs, beside what its file is linked to
OPENED: Mapping[str, tuple[str, ...]] = MappingProxyType({"onnxruntime-cuda": ("libcudnn.so.9",), "onnxruntime-tensorrt": ()})
#: libraries by the start of their name: those of the driver beside libcuda, which was loaded already, of CUDA and of
#: TensorRT. All others are the system's.
_DRIVER = re.compile(r"libnvidia-")
_CUDA = CUDA_LIBRARIES
_TENSORRT = re.compile(r"lib(nvinfer|nvonnxparser)")
#: the oldest compute capability that CUDA of a major version, and TensorRT 10 and 11, have code for
OLDEST: Mapping[int, tuple[int, int]] = MappingProxyType({12: (5, 0), 13: (7, 5)})
OLDEST_TENSORRT = (7, 5)


def capabilities(name: str) -> Capabilities:
    on_gpu = PLUGINS[name].kind == "GPU" if name in PLUGINS else name != "onnxruntime-cpu"
    targets = {"onnxruntime-cpu": ("cpu",), "onnxruntime-openvino": ("cpu",), "onnxruntime-cuda": ("cuda",)}.get(name, ())
    return Capabilities(
        on_gpu=on_gpu,
        platform="onnxruntime_onnx",
        targets=targets,
        # OpenVINO is compared as itself.
        compared_by_default=name != "onnxruntime-openvino",
    )


def needs_nvidia(name: str) -> bool:
    """Return whether the backend called `name` runs on NVIDIA's GPUs alone."""
    return name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")


def probe(name: str) -> Probe:
    """Return whether sessions can run here on ONNX Runtime's provider behind `name`."""
    flavours = installed_flavours()
    shown = " and ".join(flavours.values())
    if len(flavours) == 2:
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'relu-deploy[{_extra(name)}]'"
        reason = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        return Probe(name, False, version=shown, reason=reason, fix=fix)
    if name == "onnxruntime-cpu":
        module = _import(flavours)
        if isinstance(module, Missing):
            return Probe(name, False, version=shown, reason=module.reason, fix=module.fix)
        return Probe(name, True, version=shown, device="CPU")
    if name in PLUGINS and not needs_nvidia(name):
        return _probe_plugin(name, flavours)
    found = gpu_of(name)
    if isinstance(found, Gpu):
        return Probe(name, True, version=shown, device=str(found))
    first = find_gpu()
    device = str(first) if isinstance(first, Gpu) else ""
    return Probe(name, False, version=shown, device=device, reason=found.reason, fix=found.fix)


def gpu_of(name: str, index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index if the provider behind `name` can run on it, else why it is unavailable."""
    # Hardware first: without it no package helps.
    driver = find_driver()
    if isinstance(driver, Missing):
        return driver
    gpu = choose_gpu(driver, index)
    if isinstance(gpu, Missing):
        return gpu
    check = _rtx_obstacle if name in PLUGINS else _built_in_obstacle
    return check(name, installed_flavours(), driver, gpu) or gpu


def installed_flavours() -> dict[str, str]:
    """Return the versions of the packages that bring the module onnxruntime, by name."""
    found = {}
    for flavour in FLAVOURS:
        try:
            found[flavour] = version(flavour)
        except PackageNotFoundError:
            continue
    return found


def runs_on_rtx(gpu: Gpu) -> bool:
    """Return whether TensorRT-RTX's provider takes this GPU: Ampere and Ada of the RTX kind, Blackwell of it and later."""
    return gpu.capability in ((8, 6), (8, 9)) or gpu.capability >= (12, 0)


def _extra(name: str) -> str:
    if not needs_nvidia(name):
        return "cpu"
    return "cpu,rtx" if name in PLUGINS else "cuda"


def _import(flavours: Mapping[str, str]) -> Any | Missing:
    """Return the module onnxruntime, or why there is none."""
    if not flavours:
        return Missing("onnxruntime is not installed", "pip install 'relu-deploy[cpu]'")
    try:
        import onnxruntime
    except Exception as error:  # files of two flavours, a system library that is missing: it may raise anything
        (flavour,) = flavours
        return Missing(
            f"{flavour} is installed but cannot be imported: {error}", f"pip install --force-reinstall --no-deps {flavour}"
        )
    return onnxruntime


# ---------------------------------------------------------------- CUDA and TensorRT, which come with onnxruntime-gpu


def _built_in_obstacle(name: str, flavours: Mapping[str, str], driver: Driver, gpu: Gpu) -> Missing | None:
    if not flavours:
        return Missing("onnxruntime-gpu is not installed", f"pip install 'relu-deploy[{_extra(name)}]'")
    onnxruntime = _import(flavours)
    if isinstance(onnxruntime, Missing):
        return onnxruntime
    ((flavour, release),) = flavours.items()
    package = f"{flavour} {release}"
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        if flavour == "onnxruntime-gpu":
            return Missing(f"this build of {package} has no {PROVIDERS[name]}", "pip install --force-reinstall onnxruntime-gpu")
        return Missing(
            f"{package} is the CPU flavour, which has no {PROVIDERS[name]}",
            f"pip uninstall -y onnxruntime && pip install 'relu-deploy[{_extra(name)}]'",
        )
    cuda = int(str(getattr(onnxruntime, "cuda_version", "") or "0").partition(".")[0] or 0)
    if (old := too_old(driver, cuda, package)) is not None:
        return old
    oldest = OLDEST_TENSORRT if name == "onnxruntime-tensorrt" else OLDEST.get(cuda, (0, 0))
    if gpu.capability < oldest:
        what = "TensorRT" if name == "onnxruntime-tensorrt" else f"{package} (CUDA {cuda})"
        return Missing(f"{what} needs compute capability {oldest[0]}.{oldest[1]} or newer, and this is {gpu}", "use a newer GPU")
    file = Path(str(onnxruntime.__file__)).parent / "capi" / FILES[name]
    return _library_obstacle(name, package, release, file)


def _library_obstacle(name: str, package: str, release: str, file: Path) -> Missing | None:
    """Return which of the libraries that `file` is linked to this process would not find. Windows' files are not read."""
    places = SharedLibraries.here()
    needed = [each for each in linked_to(file) if _CUDA.match(each) or _TENSORRT.match(each)]
    missing = places.missing([*needed, *(OPENED[name] if needed else ())])
    cuda = [each for each in missing if _CUDA.match(each)]
    tensorrt = [each for each in missing if _TENSORRT.match(each)]
    if cuda:
        # The extra that sounds complete is not.
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
    """Return why the provider does not get the TensorRT that it is linked to, and what to do."""
    major = library.rpartition(".")[2]
    others = [path.name.rpartition(".")[2] for path in places.like("nvinfer") if path.name != library]
    reason = f"{package} is linked to TensorRT {major} ({library}), which is not found"
    install = f"pip install 'tensorrt-cu13=={major}.*'"
    if others:
        return Missing(
            f"{reason}; TensorRT {others[-1]}, which is installed, does not stand in for it",
            f"use --backend tensorrt, which runs TensorRT {others[-1]}; or in another environment: {install}",
        )
    return Missing(reason, f"{install}, where NVIDIA's own package index can be reached")


def _is_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


# ---------------------------------------------------------------- plug-ins


def _probe_plugin(name: str, flavours: Mapping[str, str]) -> Probe:
    """Return whether a plug-in can run that is no concern of NVIDIA's driver: it is registered, and offers devices or none."""
    plugin, shown = PLUGINS[name], " and ".join(flavours.values())
    onnxruntime = _import(flavours)
    missing = onnxruntime if isinstance(onnxruntime, Missing) else None
    if missing is None:
        ((flavour, release),) = flavours.items()
        missing = unavailable(onnxruntime, f"{flavour} {release}", plugin) or register(onnxruntime, plugin)
    if missing is not None:
        return Probe(name, False, version=shown, reason=missing.reason, fix=missing.fix)
    shown = f"{shown}, plug-in {next(iter(installed(plugin).values()))}"
    devices = devices_of(onnxruntime, plugin)
    if not devices:
        reason = f"{plugin.provider} finds no device here"
        return Probe(name, False, version=shown, reason=reason, fix=f"run it on a machine with {plugin.needs}")
    metadata = devices[0].ep_metadata
    return Probe(name, True, version=shown, device=str(metadata.get("FULL_DEVICE_NAME") or plugin.kind))


def _rtx_obstacle(name: str, flavours: Mapping[str, str], driver: Driver, gpu: Gpu) -> Missing | None:
    plugin = PLUGINS[name]
    if not runs_on_rtx(gpu):
        return Missing(
            f"ONNX Runtime's TensorRT-RTX provider runs on compute capability 8.6, 8.9, and 12.0 and newer, and this is {gpu}",
            "use --backend tensorrt or onnxruntime-cuda on this GPU",
        )
    if not flavours:
        return Missing("onnxruntime is not installed", "pip install 'relu-deploy[cpu,rtx]'")
    onnxruntime = _import(flavours)
    if isinstance(onnxruntime, Missing):
        return onnxruntime
    ((flavour, version_of_it),) = flavours.items()
    if (missing := unavailable(onnxruntime, f"{flavour} {version_of_it}", plugin)) is not None:
        return missing
    ((package, release),) = installed(plugin).items()
    if (old := too_old(driver, plugin.distributions[package], f"{package} {release}")) is not None:
        return old
    places, linked = SharedLibraries.here(), plugin.linked_to()
    if missing_here := places.missing([each for each in linked if _DRIVER.match(each)]):
        # A container gets the driver's libraries by what they are for; this one is for watching the GPU.
        return Missing(
            f"{package} {release} needs {', '.join(missing_here)} of NVIDIA's driver, which {_is_are(missing_here)} not found",
            "start the container with -e NVIDIA_DRIVER_CAPABILITIES=compute,utility, or install the whole driver",
        )
    if missing_here := places.missing([each for each in linked if _CUDA.match(each)]):
        return Missing(
            f"{package} {release} needs {', '.join(missing_here)}, which {_is_are(missing_here)} not found",
            f"pip install 'nvidia-cuda-runtime=={plugin.distributions[package]}.*'",
        )
    return None
