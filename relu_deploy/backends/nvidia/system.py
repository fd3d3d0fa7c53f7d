"""Describes the machine for `doctor`: CPU threads, NVIDIA's driver and GPUs, CUDA libraries, ONNX Runtime packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.backends.nvidia.container import Host
from relu_deploy.backends.nvidia.driver import Driver, Missing, find_driver
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries
from relu_deploy.backends.onnxruntime.probe import installed_flavors
from relu_deploy.backends.threads import ThreadCount, find_threads

__all__ = ["System", "examine"]

#: stems of the file names of the libraries that GPU backends are linked to
LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer", "tensorrt_rtx")


@dataclass(frozen=True)
class System:
    """The machine that this process runs on.

    Attributes:
        host: Container and device files.
        driver: NVIDIA's driver, or why it cannot be used.
        libraries: Paths of CUDA libraries by file name, in every version that was found.
        onnxruntime: Versions of the installed packages that provide the module onnxruntime, by name.
        threads: Default number of CPU threads.
    """

    host: Host
    driver: Driver | Missing
    libraries: Mapping[str, Path]
    onnxruntime: Mapping[str, str]
    threads: ThreadCount

    def to_json(self) -> dict[str, Any]:
        driver = None if isinstance(self.driver, Missing) else self.driver
        return {
            "container": self.host.container,
            "cuda_visible_devices": self.host.visible,
            "driver": driver.to_json() if driver else None,
            "gpus": [gpu.to_json() for gpu in driver.gpus] if driver else [],
            "reason": "" if isinstance(self.driver, Driver) else self.driver.reason,
            "fix": "" if isinstance(self.driver, Driver) else self.driver.fix,
            "libraries": {name: str(file) for name, file in self.libraries.items()},
            "onnxruntime": dict(self.onnxruntime),
            "threads": self.threads.to_json(),
        }


def examine() -> System:
    """Return a description of the machine. No library other than the driver's is loaded."""
    places = SharedLibraries.here()
    libraries = {file.name: file for stem in LIBRARIES for file in places.like(stem)}
    return System(Host.here(), find_driver(), libraries, installed_flavors(), find_threads())
