"""Which extras have packages for this operating system and processor, so that `doctor` names none that cannot be installed.

The markers in pyproject.toml say the same, so that an extra installs what there is.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.util import find_spec

__all__ = ["has_packages", "install_command", "is_installed"]


def _any_but_windows_on_arm(system: str, machine: str) -> bool:
    return (system, machine) != ("win32", "arm64")


def _nvidia(system: str, machine: str) -> bool:
    return system == "linux" or (system, machine) == ("win32", "x86_64")


def _x86(system: str, machine: str) -> bool:
    return system in ("linux", "win32") and machine == "x86_64"


#: extra → whether the packages of its backends exist for a system and a machine
_AVAILABLE: dict[str, Callable[[str, str], bool]] = {
    "cuda": _nvidia,
    "gpu": _x86,
    "openvino": _any_but_windows_on_arm,
    "rtx": _x86,
    "cpu,rtx": _x86,
    "torch": _any_but_windows_on_arm,
}


def has_packages(extra: str, system: str | None = None, machine: str | None = None) -> bool:
    """Return whether the packages of `relu-deploy[extra]` exist here.

    Args:
        extra: Name of the extra.
        system: As `sys.platform`.
        machine: As `platform.machine()`.
    """
    known = {"amd64": "x86_64", "aarch64": "arm64"}
    machine = (platform.machine() if machine is None else machine).lower()
    check = _AVAILABLE.get(extra)
    return check is None or check(system or sys.platform, known.get(machine, machine))


def install_command(extra: str) -> str:
    """Return the command that installs `extra`, or what to do instead where it has no packages."""
    if has_packages(extra):
        return f"pip install 'relu-deploy[{extra}]'"
    return (
        f"there are no packages for {sys.platform} on {platform.machine()}: use onnxruntime-cpu, pip install 'relu-deploy[cpu]'"
    )


def is_installed(module: str) -> bool:
    """Return whether a package of this name can be imported. A folder without `__init__.py` on the search path is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
