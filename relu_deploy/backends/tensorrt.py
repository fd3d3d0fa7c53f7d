"""NVIDIA TensorRT and TensorRT-RTX: what is installed, and what it can do here. One file for both; the module is the only difference."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from relu_deploy.backends.base import Options, Probe, Session
from relu_deploy.backends.nvidia import Gpu, Missing, find_gpu
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, Unsupported

__all__ = ["can_build", "load", "probe"]

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: major versions whose interface this package speaks
MAJORS = {"tensorrt": ("10", "11"), "tensorrt-rtx": ("1",)}
INSTALL = {
    "tensorrt": "pip install 'relu-deploy[gpu]', where NVIDIA's own package index can be reached: the public package only fetches from there",
    "tensorrt-rtx": "pip install 'relu-deploy[rtx]'",
}


def probe(name: str) -> Probe:
    """Return whether sessions can run here. Engines can be built on more machines: see `can_build`."""
    trt, missing = _library(name)
    if missing is not None:
        return missing
    gpu = gpu_for(trt)
    if isinstance(gpu, Missing):
        fix = f"{gpu.fix}; engines can be built here without" if compiles_ahead(trt) else gpu.fix
        return Probe(name, False, version=trt.__version__, reason=gpu.reason, fix=fix)
    reason = "this version of relu_deploy builds engines for it but does not run them yet"
    return Probe(name, False, version=trt.__version__, device=str(gpu), reason=reason, fix="use another backend")


def can_build(name: str) -> Probe:
    """Return whether engines can be built here: TensorRT needs a GPU for it, TensorRT-RTX does not."""
    trt, missing = _library(name)
    if missing is not None:
        return missing
    if compiles_ahead(trt):
        return Probe(name, True, version=trt.__version__, device="ahead of time, without a GPU")
    gpu = gpu_for(trt)
    if isinstance(gpu, Missing):
        fix = f"{gpu.fix}, or build for tensorrt-rtx, which needs none"
        reason = f"it builds on the GPU it builds for, and {gpu.reason}"
        return Probe(name, False, version=trt.__version__, reason=reason, fix=fix)
    return Probe(name, True, version=trt.__version__, device=str(gpu))


def load(name: str, bundle: Bundle, options: Options) -> Session:  # noqa: ARG001  # the signature of every backend
    found = probe(name)
    if found.device:
        raise Unsupported(f"{name} cannot run {bundle.name}: {found.reason}", found.fix)
    raise BackendUnavailable(f"backend {name!r} is not usable here: {found.reason}", found.fix)


def gpu_for(trt: Any, index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index if the library behind `trt` runs on it, else why not."""
    gpu = find_gpu(index)
    if isinstance(gpu, Gpu) and compiles_ahead(trt) and not hasattr(trt.ComputeCapability, "SM{}{}".format(*gpu.capability)):
        return Missing(f"TensorRT-RTX {trt.__version__} does not run on {gpu}", "use backend tensorrt on this GPU")
    return gpu


def _library(name: str) -> tuple[Any, Probe | None]:
    """Return the module behind `name`, or the probe that says why it cannot be used."""
    try:
        trt = import_module(MODULES[name])
    except ModuleNotFoundError:
        return None, Probe(name, False, reason=f"{MODULES[name]} is not installed", fix=INSTALL[name])
    except (ImportError, OSError) as error:
        reason = f"{MODULES[name]} is installed but its libraries cannot be loaded: {error}"
        return None, Probe(name, False, reason=reason, fix=INSTALL[name])
    version = str(getattr(trt, "__version__", ""))
    if version.partition(".")[0] not in MAJORS[name]:
        reason = f"{MODULES[name]} {version} is installed; this version of relu_deploy works with {' and '.join(MAJORS[name])}"
        return None, Probe(name, False, version=version, reason=reason, fix=INSTALL[name])
    return trt, None


def compiles_ahead(trt: Any) -> bool:
    return hasattr(trt, "ComputeCapability")
