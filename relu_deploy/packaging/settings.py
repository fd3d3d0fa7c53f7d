"""What a package is asked to be, and what came of it: the same for every target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError

__all__ = ["DEVICES", "PackageOptions", "PackageReport", "Written", "model_name"]

DEVICES = ("cpu", "gpu")


@dataclass(frozen=True)
class PackageOptions:
    """How the model is to be served. What is empty, None or 0 is chosen by the target, from measurements where there are some.

    flavour: what runs the model inside the target. device: "cpu" or "gpu". max_batch: most rows run together. max_delay:
    milliseconds that a request may wait for others. instances: copies of the model. threads: of one copy, on a CPU.
    accelerator: "tensorrt" lets ONNX Runtime hand the graph to TensorRT. storage_uri: where the cluster finds the model.
    image: of the container.
    """

    flavour: str = ""
    device: str = ""
    max_batch: int | None = None
    max_delay: float | None = None
    instances: int = 0
    threads: int = 0
    accelerator: str = ""
    storage_uri: str = ""
    image: str = ""

    def check(self, target: str, taken: Sequence[str], flavours: Sequence[str]) -> None:
        """Raise UsageError for a value that makes no sense, or an option that means nothing to `target`."""
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name not in taken:
                option = "--" + field.name.replace("_", "-")
                raise UsageError(
                    f"{option} means nothing for {target}", f"leave it out; relu-deploy package --help says what {target} takes"
                )
        for name, least in (("max_batch", 1), ("max_delay", 0), ("instances", 0), ("threads", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least {least}, not {value}", "see relu-deploy package --help"
                )
        if self.device not in ("", *DEVICES):
            raise UsageError(f"--device {self.device!r} is neither cpu nor gpu", "leave it out to let the model decide")
        if self.accelerator not in ("", "tensorrt"):
            raise UsageError(f"there is no accelerator {self.accelerator!r}", "it is tensorrt")
        if self.flavour and self.flavour not in flavours:
            raise UsageError(f"{target} has no flavour {self.flavour!r}", f"it is one of {', '.join(flavours)}")


@dataclass(frozen=True)
class Written:
    """What a target wrote. model: what the model is called there. notes: what a person has to know before it is deployed."""

    model: str
    flavour: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageReport:
    """A package. files: all that was written, in `folder`."""

    target: str
    folder: Path
    files: tuple[Path, ...]
    written: Written

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "model": self.written.model,
            "flavour": self.written.flavour,
            "folder": str(self.folder),
            "files": [str(file) for file in self.files],
            "notes": list(self.written.notes),
        }


def model_name(bundle: Bundle) -> str:
    """Return what a server calls the model: as `serve` does, with what a folder's name cannot hold replaced."""
    name = f"{bundle.name}-{bundle.variant}" if bundle.variant else bundle.name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "model"
