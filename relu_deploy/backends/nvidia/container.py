"""What this process can see of the machine under it: whether it is in a container, and which NVIDIA driver the kernel runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host"]

#: how container engines call the groups that they put processes in
ENGINES = re.compile(r"docker|containerd|kubepods|libpod|crio|lxc|garden")


@dataclass(frozen=True)
class Host:
    """The machine, as files and environment variables tell.

    container: this process runs in one. kernel_driver: version of NVIDIA's kernel module, "" when none is loaded; a
    container shows its host's. devices: /dev holds files of GPUs. visible: CUDA_VISIBLE_DEVICES, None when it is not set.
    """

    container: bool
    kernel_driver: str
    devices: bool
    visible: str | None
    platform: str = sys.platform

    @classmethod
    def here(cls, root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Host:
        """Return what holds for this process. root: where the file system begins."""
        environment = os.environ if environment is None else environment
        return cls(
            container=_is_container(root, environment),
            kernel_driver=_kernel_driver(root),
            # /dev/dxg is how Windows lends its GPU to Linux.
            devices=any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev" / "dxg").exists(),
            visible=environment.get("CUDA_VISIBLE_DEVICES"),
        )

    @property
    def hides_gpus(self) -> bool:
        """Return whether CUDA_VISIBLE_DEVICES hides every GPU: it is set and names none, or begins with what is none."""
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
