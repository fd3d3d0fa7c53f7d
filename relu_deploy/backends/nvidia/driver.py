"""Finds GPUs through the CUDA driver API, called with ctypes, so that no CUDA Python package is needed.

Only the driver's library is loaded. No CUDA context is created and no GPU memory is allocated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from relu_deploy.backends.nvidia.container import Host

__all__ = ["Driver", "Gpu", "Missing", "choose_gpu", "find_driver", "find_gpu", "too_old"]

#: values of CUdevice_attribute (cuda.h)
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
#: the first driver branch that runs programs of each CUDA major version
#: (docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility")
FIRST_DRIVER: Mapping[int, str] = MappingProxyType({11: "450", 12: "525", 13: "580"})

_RUN_WITH_GPUS = (
    "start the container with docker run --gpus all (Kubernetes: request nvidia.com/gpu), "
    "on a host with NVIDIA's driver and its Container Toolkit"
)
#: meaning and fix of cuInit's errors (cuda.h, CUresult)
ERRORS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        2: ("out of memory", "free memory on the GPU: nvidia-smi shows who holds it"),
        3: ("not initialized: its kernel module does not respond", "run nvidia-smi, which loads the module; else reboot"),
        34: ("the library is a stub for linking", "remove the folder with stubs/libcuda.so from LD_LIBRARY_PATH"),
        46: ("the GPU is used exclusively by another process", "end that process: nvidia-smi shows it and the compute mode"),
        100: ("no device", "run it on a machine with an NVIDIA GPU: nvidia-smi -L lists what there is"),
        101: ("no such device", "correct CUDA_VISIBLE_DEVICES: nvidia-smi -L lists what there is"),
        802: ("the system is not ready yet", "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager"),
        803: (
            "its library and its kernel module are of different versions",
            "reboot, which loads the module that was installed last",
        ),
        804: (
            "forward compatibility is for data center GPUs only",
            "remove the cuda-compat folder from LD_LIBRARY_PATH, or update the driver",
        ),
        999: ("unknown: often its module nvidia_uvm is not loaded", "run as root: nvidia-modprobe -u -c=0; else reboot"),
    }
)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: Its index among those that this process may use.
        name: Its product name.
        capability: Its compute capability, such as (9, 0) for a Hopper GPU.
        memory_bytes: Its memory, 0 if the driver does not report it.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "name": self.name,
            "compute_capability": "{}.{}".format(*self.capability),
            "memory_bytes": self.memory_bytes or None,
        }


@dataclass(frozen=True)
class Missing:
    """Why a GPU or library cannot be used here, and how to fix it."""

    reason: str
    fix: str


@dataclass(frozen=True)
class Driver:
    """A working NVIDIA driver.

    Attributes:
        version: Its version, "" if it is not known.
        cuda: The newest CUDA version that it supports, such as (12, 4).
        gpus: The GPUs that this process may use, at least one.
    """

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        return f"NVIDIA's driver{f' {self.version}' if self.version else ''} (CUDA {self.cuda[0]}.{self.cuda[1]})"

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version or None, "cuda": "{}.{}".format(*self.cuda)}


def find_driver(host: Host | None = None) -> Driver | Missing:
    """Return the driver and the GPUs that this process may use, or why there is none.

    Args:
        host: The machine, by default this one.
    """
    host = host or Host.here()
    try:
        cuda: Any = ctypes.CDLL("nvcuda.dll" if host.platform == "win32" else "libcuda.so.1")
    except OSError:
        return _no_driver(host)
    version, count = ctypes.c_int(), ctypes.c_int()
    if code := int(cuda.cuInit(0) or 0):
        return _refused(code, host)
    if code := int(cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)) or 0):
        return _refused(code, host)
    if count.value < 1:
        return _refused(100, host)
    gpus = []
    for index in range(count.value):
        found = _gpu(cuda, index)
        if isinstance(found, Missing):
            return found
        gpus.append(found)
    return Driver(host.kernel_driver, (version.value // 1000, version.value % 1000 // 10), tuple(gpus))


def find_gpu(index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index among those that this process may use, or why it is unavailable."""
    driver = find_driver()
    if isinstance(driver, Missing):
        return driver
    return choose_gpu(driver, index)


def choose_gpu(driver: Driver, index: int, host: Host | None = None) -> Gpu | Missing:
    """Return the GPU of `driver` with that index, or a reason that lists the ones that exist."""
    if 0 <= index < len(driver.gpus):
        return driver.gpus[index]
    host = host or Host.here()
    known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in driver.gpus)
    limited = f"; CUDA_VISIBLE_DEVICES={host.visible} shows no more" if host.visible is not None else ""
    return Missing(f"there is no GPU {index}: this process sees {known}{limited}", f"use --device 0 to {len(driver.gpus) - 1}")


def too_old(driver: Driver, major: int, package: str) -> Missing | None:
    """Return why `driver` cannot run `package`, which was built for CUDA `major`; None if it can."""
    if driver.cuda[0] >= major:
        return None
    first = FIRST_DRIVER.get(major)
    newer = f"to {first} or later" if first else f"to one that runs CUDA {major}"
    where = " of the container's host" if Host.here().container else ""
    return Missing(
        f"{driver} is too old for {package}, which was built with CUDA {major}",
        f"update NVIDIA's driver{where} {newer}, or install a build of the package for CUDA {driver.cuda[0]}",
    )


def _gpu(cuda: Any, index: int) -> Gpu | Missing:
    device, label, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    code = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(label, len(label), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    )
    if code:
        return Missing(
            f"NVIDIA's driver does not describe GPU {index} (error {int(code)})", "run nvidia-smi, and reboot if it fails"
        )
    return Gpu(index, label.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _no_driver(host: Host) -> Missing:
    if host.platform == "darwin":
        return Missing("NVIDIA has no driver for macOS", "run it on Linux or Windows with an NVIDIA GPU")
    if host.container and host.kernel_driver:
        return Missing(f"this container was started without the GPUs of its host (driver {host.kernel_driver})", _RUN_WITH_GPUS)
    if host.container:
        return Missing("no NVIDIA driver is visible in this container", _RUN_WITH_GPUS)
    if host.kernel_driver:
        return Missing(
            f"NVIDIA's kernel module {host.kernel_driver} is loaded but the driver's library libcuda.so.1 is not found",
            f"install that part of driver {host.kernel_driver} (Debian: apt install libcuda1)",
        )
    return Missing("no NVIDIA driver is installed", "install NVIDIA's driver, on a machine with an NVIDIA GPU")


def _refused(code: int, host: Host) -> Missing:
    meaning, fix = ERRORS.get(code, ("", "run nvidia-smi, and reboot if it fails"))
    described = f"error {code}{f', {meaning}' if meaning else ''}"
    if code in (100, 101) and host.hides_gpus:
        return Missing(
            f"CUDA_VISIBLE_DEVICES={host.visible!r} hides every GPU from this process (cuInit: {described})",
            "unset CUDA_VISIBLE_DEVICES, or set it to the numbers of the GPUs to use, for instance 0",
        )
    if code == 100 and host.visible is not None:
        return Missing(
            f"CUDA_VISIBLE_DEVICES={host.visible!r} names no GPU of this machine (cuInit: {described})",
            "unset CUDA_VISIBLE_DEVICES, or set it to what nvidia-smi -L lists",
        )
    if code == 100 and host.container and not host.devices:
        return Missing(f"NVIDIA's driver is in this container but no GPU is (cuInit: {described})", _RUN_WITH_GPUS)
    return Missing(f"NVIDIA's driver finds no usable GPU (cuInit: {described})", fix)
