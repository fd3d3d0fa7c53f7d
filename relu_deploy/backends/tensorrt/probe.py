"""Probes TensorRT and TensorRT-RTX: whether engines can be built and run here."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from relu_deploy.backends.base import Capabilities, Probe
from relu_deploy.backends.nvidia.driver import Gpu, Missing, choose_gpu, find_driver, too_old
from relu_deploy.backends.wheels import has_packages, install_command

__all__ = ["can_build", "capabilities", "probe"]

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: supported major versions
MAJORS = {"tensorrt": ("10", "11"), "tensorrt-rtx": ("1",)}
#: the oldest compute capability that TensorRT 10 and 11 and TensorRT-RTX support
OLDEST = (7, 5)
INSTALL = {
    "tensorrt": install_command("gpu")
    + (
        ", where NVIDIA's own package index can be reached: the public package only fetches from there"
        if has_packages("gpu")
        else ""
    ),
    "tensorrt-rtx": install_command("rtx"),
}


def capabilities(name: str) -> Capabilities:
    """Return what the backend called `name` supports."""
    return Capabilities(on_gpu=True, shows_tensors=False, shows_engine_layers=True, compiles_ahead=True, targets=(name,))


def probe(name: str, device: int = 0) -> Probe:
    """Return whether the backend called `name` is usable on GPU `device`. `can_build` checks whether engines can be built."""
    trt, missing = _library(name)
    if missing is not None:
        return missing
    gpu = gpu_for(trt, device)
    if isinstance(gpu, Missing):
        fix = f"{gpu.fix}; engines can be built here without a GPU" if compiles_ahead(trt) else gpu.fix
        return Probe(name, False, version=trt.__version__, reason=gpu.reason, fix=fix)
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return Probe(
            name,
            False,
            version=trt.__version__,
            device=str(gpu),
            reason="cuda-bindings, which allocates buffers on the GPU, is not installed",
            fix="pip install cuda-bindings",
        )
    return Probe(name, True, version=trt.__version__, device=str(gpu))


def can_build(name: str, device: int = 0) -> Probe:
    """Return whether engines can be built here. TensorRT needs a GPU, the one with index `device`; TensorRT-RTX does not."""
    trt, missing = _library(name)
    if missing is not None:
        return missing
    if compiles_ahead(trt):
        return Probe(name, True, version=trt.__version__, device="ahead of time, without a GPU")
    gpu = gpu_for(trt, device)
    if isinstance(gpu, Missing):
        fix = f"{gpu.fix}, or build for tensorrt-rtx, which needs no GPU"
        reason = f"it builds on the GPU that the engine is for, and {gpu.reason}"
        return Probe(name, False, version=trt.__version__, reason=reason, fix=fix)
    return Probe(name, True, version=trt.__version__, device=str(gpu))


def gpu_for(trt: Any, index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index if the library with the module `trt` runs on it, else why it does not."""
    driver = find_driver()
    if isinstance(driver, Missing):
        return driver
    gpu = choose_gpu(driver, index)
    if isinstance(gpu, Missing):
        return gpu
    title = f"{'TensorRT-RTX' if compiles_ahead(trt) else 'TensorRT'} {trt.__version__}"
    if (old := too_old(driver, _built_with(trt), title)) is not None:
        return old
    if compiles_ahead(trt) and not hasattr(trt.ComputeCapability, "SM{}{}".format(*gpu.capability)):
        return Missing(f"{title} does not run on {gpu}", "use backend tensorrt on this GPU")
    if gpu.capability < OLDEST:
        return Missing(f"{title} needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer, and this is {gpu}", "use a newer GPU")
    return gpu


def _built_with(trt: Any) -> int:
    """Return the major version of CUDA that the installed library was built for, 0 if its packages do not name it."""
    stem = MODULES["tensorrt-rtx" if compiles_ahead(trt) else "tensorrt"].replace("_", "-")
    for major in (13, 12, 11):
        for package in (f"{stem}-cu{major}-libs", f"{stem}-cu{major}"):
            try:
                version(package)
            except PackageNotFoundError:
                continue
            return major
    return 0


def _library(name: str) -> tuple[Any, Probe | None]:
    """Return the module of the backend called `name`, or a probe with the reason why it cannot be used."""
    missing = Probe(name, False, reason=f"{MODULES[name]} is not installed", fix=INSTALL[name])
    try:
        trt = import_module(MODULES[name])
    except ModuleNotFoundError:
        return None, missing
    except (ImportError, OSError) as error:
        reason = f"{MODULES[name]} is installed but its libraries cannot be loaded: {error}"
        return None, Probe(name, False, reason=reason, fix=INSTALL[name])
    if getattr(trt, "__path__", None) is not None and getattr(trt, "__file__", None) is None:
        # A folder of this name on the search path.
        return None, missing
    release = str(getattr(trt, "__version__", ""))
    if release.partition(".")[0] not in MAJORS[name]:
        reason = f"{MODULES[name]} {release} is installed; this version of relu_deploy works with {' and '.join(MAJORS[name])}"
        return None, Probe(name, False, version=release, reason=reason, fix=INSTALL[name])
    return trt, None


def compiles_ahead(trt: Any) -> bool:
    """Return whether the library compiles ahead of time for named compute capabilities, as TensorRT-RTX does."""
    return hasattr(trt, "ComputeCapability")
