"""NVIDIA's driver, asked directly: it is there before any Python package is, and says what they only hint at."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "Missing", "find_gpu"]

#: numbers of the driver's interface (cuda.h, CUdevice_attribute)
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU. capability: its compute capability, (9, 0) for a Hopper."""

    index: int
    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True)
class Missing:
    """Why no GPU can be used here, and the one thing to do."""

    reason: str
    fix: str = "run it on a machine with an NVIDIA GPU and its driver (a container needs --gpus all)"


def find_gpu(index: int = 0) -> Gpu | Missing:
    """Return the GPU with that index, as NVIDIA's driver tells. Creates no context and takes no memory."""
    try:
        cuda: Any = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Missing("no NVIDIA driver is installed")
    if code := cuda.cuInit(0):
        return Missing(f"NVIDIA's driver finds no usable GPU (cuInit: error {code})")
    label, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetName(label, len(label), index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, index)
    return Gpu(index, label.value.decode(), (major.value, minor.value))
