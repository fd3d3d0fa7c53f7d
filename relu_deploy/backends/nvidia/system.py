"""What a machine has for running models: CPU threads, NVIDIA's driver and GPUs, CUDA libraries, the flavour of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.backends.nvidia.container import Host
from relu_deploy.backends.nvidia.driver import Driver, Missing, find_driver
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries
from relu_deploy.backends.onnxruntime.probe import installed_flavours
from relu_deploy.backends.threads import ThreadCount, find_threads

__all__ = ["System", "examine"]

#: the libraries that GPU backends are linked to, by the stem of their files
LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer", "tensorrt_rtx")


@dataclass(frozen=True)
class System:
    """What was found. driver: or why it cannot be used. libraries: file of each version that is found, by its name."""

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
    """Return what this process finds. Libraries are looked for and not loaded, but for the driver's own."""
    places = SharedLibraries.here()
    libraries = {file.name: file for stem in LIBRARIES for file in places.like(stem)}
    return System(Host.here(), find_driver(), libraries, installed_flavours(), find_threads())
