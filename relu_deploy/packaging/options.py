"""Options of a package and the report on it: the same for every target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError

__all__ = ["DEVICES", "DeployedModel", "PackageOptions", "PackageReport", "model_name"]

DEVICES = ("cpu", "gpu")
#: the smallest value of an option that is a number
MINIMUM = {"max_batch": 1, "max_delay": 0, "instances": 0, "threads": 0}


@dataclass(frozen=True)
class PackageOptions:
    """How a model is served. The target chooses what is empty, None or 0, from measurements where there are some.

    Args:
        flavor: What runs the model inside the target.
        device: "cpu" or "gpu".
        max_batch: Most rows that run together.
        max_delay: Milliseconds that a request may wait for others.
        instances: Copies of the model.
        threads: CPU threads of one copy.
        accelerator: "tensorrt" lets ONNX Runtime hand the graph to TensorRT.
        storage_uri: Where the cluster finds the model.
        image: Name of the container image.
    """

    flavor: str = ""
    device: str = ""
    max_batch: int | None = None
    max_delay: float | None = None
    instances: int = 0
    threads: int = 0
    accelerator: str = ""
    storage_uri: str = ""
    image: str = ""

    def check(self, target: str, options: Sequence[str], flavors: Sequence[str]) -> None:
        """Check the values.

        Args:
            target: Name of the target.
            options: Names of the fields that the target supports.
            flavors: The target's flavors.

        Raises:
            UsageError: If a value is out of range, or the target does not support an option.
        """
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name not in options:
                raise UsageError(
                    f"{_option(field.name)} means nothing for {target}",
                    f"leave it out; relu-deploy package --help lists the options of {target}",
                )
        for name, least in MINIMUM.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{_option(name)} must be at least {least}, not {value}", "see relu-deploy package --help")
        if self.device not in ("", *DEVICES):
            raise UsageError(f"--device {self.device!r} is neither cpu nor gpu", "leave it out to let the model decide")
        if self.accelerator not in ("", "tensorrt"):
            raise UsageError(f"there is no accelerator {self.accelerator!r}", "the only one is tensorrt")
        if self.flavor and self.flavor not in flavors:
            raise UsageError(f"{target} has no flavor {self.flavor!r}", f"choose one of {', '.join(flavors)}")


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


@dataclass(frozen=True)
class DeployedModel:
    """The model as a target wrote it.

    Args:
        name: Its name in the target.
        flavor: What runs it there.
        notes: What to do or know before it is deployed.
    """

    name: str
    flavor: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageReport:
    """A package that was written.

    Args:
        target: Name of the target.
        folder: The package.
        files: All files in it.
        model: The model in it.
    """

    target: str
    folder: Path
    files: tuple[Path, ...]
    model: DeployedModel

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `relu-deploy package`, without its schema."""
        return {
            "target": self.target,
            "model": self.model.name,
            "flavour": self.model.flavor,
            "folder": str(self.folder),
            "files": [str(file) for file in self.files],
            "notes": list(self.model.notes),
        }


def model_name(bundle: Bundle) -> str:
    """Return the name of the model in the target: as `serve` names it, without characters that a folder's name cannot hold."""
    name = f"{bundle.name}-{bundle.variant}" if bundle.variant else bundle.name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "model"
