"""Which of ONNX Runtime's execution providers can run here: the first thing that stands in the way, and what to do about it.

Looked at are, in this order: the packages, NVIDIA's driver and GPU, the CUDA version both sides speak, and whether every
library is found that the provider's file says it is linked to. No provider is loaded for it and no session made, because
a provider that is loaded with the wrong libraries can end the process. ONNX Runtime itself lists providers that it was
built with, whether they can run or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relu_deploy.backends.base import Capabilities, Probe
from relu_deploy.backends.nvidia.driver import Driver, Gpu, Missing, choose_gpu, find_driver, find_gpu, too_old
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to

__all__ = ["FLAVOURS", "PLUGIN", "PROVIDERS", "capabilities", "gpu_of", "installed_flavours", "probe", "runs_on_rtx"]

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cpu": "CPUExecutionProvider",
        "onnxruntime-cuda": "CUDAExecutionProvider",
        "onnxruntime-tensorrt": "TensorrtExecutionProvider",
        "onnxruntime-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    }
)
FLAVOURS = ("onnxruntime", "onnxruntime-gpu")
#: the package of TensorRT-RTX's provider, which ONNX Runtime loads as a plug-in; one for each CUDA major version
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
PLUGIN_PACKAGES: Mapping[str, int] = MappingProxyType(
    {"onnxruntime-ep-nv-tensorrt-rtx-cu13": 13, "onnxruntime-ep-nv-tensorrt-rtx-cu12": 12}
)
FILES: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime-cuda": "libonnxruntime_providers_cuda.so",
        "onnxruntime-tensorrt": "libonnxruntime_providers_tensorrt.so",
    }
)
#: what a provider opens by itself once it runs, beside what its file is linked to
OPENED: Mapping[str, tuple[str, ...]] = MappingProxyType({"onnxruntime-cuda": ("libcudnn.so.9",), "onnxruntime-tensorrt": ()})
#: libraries by the start of their name: those of the driver beside the one that was asked already, of CUDA and of
#: TensorRT. All others are the system's.
_DRIVER = re.compile(r"libnvidia-")
_CUDA = re.compile(r"lib(cublas|cudnn|cudart|cufft|curand|nvrtc|nvJitLink)")
_TENSORRT = re.compile(r"lib(nvinfer|nvonnxparser)")
#: the oldest compute capability that CUDA of a major version, and TensorRT 10 and 11, have code for
OLDEST: Mapping[int, tuple[int, int]] = MappingProxyType({12: (5, 0), 13: (7, 5)})
OLDEST_TENSORRT = (7, 5)


def capabilities(name: str) -> Capabilities:
    return Capabilities(on_gpu=name != "onnxruntime-cpu", platform="onnxruntime_onnx")


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
    found = gpu_of(name)
    if isinstance(found, Gpu):
        return Probe(name, True, version=shown, device=str(found))
    first = find_gpu()
    device = str(first) if isinstance(first, Gpu) else ""
    return Probe(name, False, version=shown, device=device, reason=found.reason, fix=found.fix)


def gpu_of(name: str, index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index if the provider behind `name` can run on it, else the first thing in the way."""
    # Hardware first: without it no package helps.
    driver = find_driver()
    if isinstance(driver, Missing):
        return driver
    gpu = choose_gpu(driver, index)
    if isinstance(gpu, Missing):
        return gpu
    check = _plugin_obstacle if name == "onnxruntime-tensorrt-rtx" else _built_in_obstacle
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
    return {"onnxruntime-cpu": "cpu", "onnxruntime-tensorrt-rtx": "cpu,rtx"}.get(name, "cuda")


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


def _tensorrt_mismatch(package: str, wanted: str, places: SharedLibraries) -> Missing:
    """Return why the provider does not get the TensorRT that it is linked to, and what to do."""
    major = wanted.rpartition(".")[2]
    others = [path.name.rpartition(".")[2] for path in places.like("nvinfer") if path.name != wanted]
    reason = f"{package} is linked to TensorRT {major} ({wanted}), which is not found"
    install = f"pip install 'tensorrt-cu13=={major}.*'"
    if others:
        return Missing(
            f"{reason}; TensorRT {others[-1]}, which is installed, does not stand in for it",
            f"use --backend tensorrt, which runs TensorRT {others[-1]}; or in another environment: {install}",
        )
    return Missing(reason, f"{install}, where NVIDIA's own package index can be reached")


def _is_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


# ---------------------------------------------------------------- TensorRT-RTX, which is a plug-in


def _plugin_obstacle(name: str, flavours: Mapping[str, str], driver: Driver, gpu: Gpu) -> Missing | None:  # as the other  # noqa: ARG001  # as the other
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
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        (flavour,) = flavours
        return Missing(
            f"{flavour} {flavours[flavour]} takes no providers as plug-ins", f"pip install --upgrade '{flavour}>=1.24'"
        )
    builds = {package: found for package in PLUGIN_PACKAGES if (found := _version(package))}
    spec = find_spec(PLUGIN)
    if not builds or spec is None or not spec.submodule_search_locations:
        return Missing("onnxruntime-ep-nv-tensorrt-rtx is not installed", "pip install 'relu-deploy[rtx]'")
    if len(builds) > 1:
        return Missing(
            f"{' and '.join(builds)} are both installed and overwrite each other's files",
            f"pip uninstall -y {' '.join(builds)} && pip install 'relu-deploy[rtx]'",
        )
    ((package, release),) = builds.items()
    if (old := too_old(driver, PLUGIN_PACKAGES[package], f"{package} {release}")) is not None:
        return old
    folder = Path(next(iter(spec.submodule_search_locations)))
    file = folder / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    if missing := SharedLibraries.here().missing([each for each in linked_to(file) if _DRIVER.match(each)]):
        # A container gets the driver's libraries by what they are for; this one is for watching the GPU.
        return Missing(
            f"{package} {release} needs {', '.join(missing)} of NVIDIA's driver, which {_is_are(missing)} not found",
            "start the container with -e NVIDIA_DRIVER_CAPABILITIES=compute,utility, or install the whole driver",
        )
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
