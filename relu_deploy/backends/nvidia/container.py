"""Detects whether this process runs in a container, and which NVIDIA driver and GPUs are visible to it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host"]

#: names of the control groups that container engines create
ENGINES = re.compile(r"docker|containerd|kubepods|libpod|crio|lxc|garden")


@dataclass(frozen=True)
class Host:
    """The machine, as described by files and environment variables.

    Attributes:
        container: Whether this process runs in a container.
        kernel_driver: Version of NVIDIA's kernel module, "" if none is loaded. A container sees that of its host.
        devices: Whether /dev has device files of GPUs.
        visible: Value of CUDA_VISIBLE_DEVICES, None if it is not set.
        platform: `sys.platform`.
    """

    container: bool
    kernel_driver: str
    devices: bool
    visible: str | None
    platform: str = sys.platform

    @classmethod
    def here(cls, root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Host:
        """Return the machine that this process runs on.

        Args:
            root: Root of the file system.
            environment: The environment variables, by default those of this process.
        """
        environment = os.environ if environment is None else environment
        return cls(
            container=_is_container(root, environment),
            kernel_driver=_kernel_driver(root),
            # /dev/dxg is the GPU of Windows in the Windows Subsystem for Linux.
            devices=any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev" / "dxg").exists(),
            visible=environment.get("CUDA_VISIBLE_DEVICES"),
        )

    @property
    def hides_gpus(self) -> bool:
        """Whether CUDA_VISIBLE_DEVICES hides every GPU: it is empty or its first entry is not a GPU."""
        return self.visible is not None and self.visible.split(",")[0].strip() in ("", "-1", "none", "void", "NoDevFiles")


def _is_container(root: Path, environment: Mapping[str, str]) -> bool:
    marks = (root / ".dockerenv", root / "run" / ".containerenv", root / "run" / "secrets" / "kubernetes.io")
    if environment.get("container") or "KUBERNETES_SERVICE_HOST" in environment or any(mark.exists() for mark in marks):
        return True
    return bool(ENGINES.search(_text(root / "proc" / "1" / "cgroup")))


def _kernel_driver(root: Path) -> str:
    version = _text(root / "sys" / "module" / "nvidia" / "version").strip()
    if version:
        return version
    found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)\s", _text(root / "proc" / "driver" / "nvidia" / "version"))
    return found[1] if found else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
