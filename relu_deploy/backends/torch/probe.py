"""Probes PyTorch: the package, its CUDA build, NVIDIA's driver and GPU, and the compilers that torch.compile needs."""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from relu_deploy.backends.base import Capabilities, Probe
from relu_deploy.backends.nvidia.driver import Gpu, Missing, find_driver, find_gpu, too_old
from relu_deploy.backends.wheels import install_command
from relu_deploy.gc_pause import without_collecting

__all__ = ["capabilities", "compiles", "on_gpu", "probe"]


def capabilities(name: str) -> Capabilities:
    """Return what the backend called `name` supports."""
    compiled = compiles(name)
    return Capabilities(
        on_gpu=on_gpu(name),
        evaluates_float64=name == "torch",
        shows_tensors=not compiled,
        runs_program=True,
        compiles_in_place=compiled,
        autocasts=on_gpu(name),
        # The first run takes a minute or more to compile.
        compared_by_default=not compiled,
        modules=("torch.export", "torch._dynamo", "torch._export.serde.serialize", "torch._inductor.config", "networkx"),
    )


def on_gpu(name: str) -> bool:
    """Return whether the backend called `name` runs on a GPU."""
    return name.endswith("-cuda")


def compiles(name: str) -> bool:
    """Return whether the backend called `name` runs programs through torch.compile."""
    return name.startswith("torch-compile")


def probe(name: str, device: int = 0) -> Probe:
    """Return whether the backend called `name` is usable on GPU `device`, or on the CPU.

    Checks that do not import torch, which takes seconds, come first.
    """
    version, cuda = _installed_build()
    gpu = find_gpu(device) if name.endswith("-cuda") else None
    if isinstance(gpu, Missing):
        return Probe(name, False, version=version, reason=gpu.reason, fix=gpu.fix)
    described = "CPU" if gpu is None else str(gpu)
    missing = (
        _check_torch(version, cuda, gpu) or _check_import(version, gpu) or (_check_compiler(gpu) if "compile" in name else None)
    )
    if missing is not None:
        return Probe(
            name, False, version=version, device="" if gpu is None else described, reason=missing.reason, fix=missing.fix
        )
    return Probe(name, True, version=version, device=described)


def _installed_build() -> tuple[str, str]:
    """Return the version of the installed torch and of the CUDA that it was built for, each "" if there is none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown", ""
    named = re.findall(r"^(__version__|cuda)\b[^=]*= *['\"]([^'\"]*)['\"]", text, re.MULTILINE)
    return dict(named).get("__version__", "unknown"), dict(named).get("cuda", "")


def _check_torch(version: str, cuda: str, gpu: Gpu | None) -> Missing | None:
    if not version:
        return Missing("torch is not installed", install_command("torch"))
    if gpu is None:
        return None
    if not cuda:
        return Missing(
            f"torch {version} is a CPU build",
            "replace it with a CUDA build: https://pytorch.org/get-started/locally has the command",
        )
    driver = find_driver()
    return driver if isinstance(driver, Missing) else too_old(driver, int(cuda.partition(".")[0]), f"torch {version}")


def _check_import(version: str, gpu: Gpu | None) -> Missing | None:
    try:
        with without_collecting():
            import torch
    except (ImportError, OSError) as error:
        return Missing(f"torch {version} is installed but cannot be imported: {error}", "pip install --force-reinstall torch")
    if gpu is None:
        return None
    if not torch.cuda.is_available():
        return Missing(
            f"torch {version} finds no GPU, though NVIDIA's driver does", "python -c 'import torch; torch.cuda.init()' says why"
        )
    built = torch.cuda.get_arch_list()
    if built and not any(_runs(each, gpu.capability) for each in built):
        return Missing(
            f"torch {version} has no kernels for {gpu}: it has {', '.join(built)}",
            "install a build of torch that has them: https://pytorch.org/get-started/locally",
        )
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether code for `architecture`, such as sm_86 or compute_90, runs on a GPU of that capability."""
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")
    major, minor = int(digits[:-1]), int(digits[-1])
    # Machine code (sm) runs on later GPUs of the same generation, intermediate code (compute) on all later GPUs.
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def _check_compiler(gpu: Gpu | None) -> Missing | None:
    if gpu is not None and find_spec("triton") is None:
        return Missing("torch.compile needs triton for a GPU", "pip install triton")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return Missing("torch.compile needs a C++ compiler", "install g++ (Debian: apt install g++)")
    return None
