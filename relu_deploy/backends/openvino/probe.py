"""Probes OpenVINO: the package, its libraries, and its plug-in for the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from relu_deploy.backends.base import Capabilities, Probe
from relu_deploy.backends.threads import alternative_counts
from relu_deploy.backends.wheels import install_command, is_installed

__all__ = ["DEVICE", "capabilities", "probe"]

#: the device that this backend runs on; OpenVINO's "AUTO" may choose another one
DEVICE = "CPU"


def capabilities(_: str) -> Capabilities:
    """Return what the backend supports."""
    tunables: tuple[Mapping[str, Any], ...] = (*({"threads": count} for count in alternative_counts()), {"spin": False})
    return Capabilities(
        autocasts=True, times_layers=True, targets=("cpu",), tunables=tunables, extra="openvino", placement="openvino"
    )


def probe(name: str) -> Probe:
    """Return whether OpenVINO is usable here."""
    if not is_installed("openvino"):
        return Probe(name, False, reason="openvino is not installed", fix=install_command("openvino"))
    try:
        release = version("openvino")
    except PackageNotFoundError:
        release = "unknown"
    try:
        import openvino

        core = openvino.Core()
        devices = core.available_devices
    except Exception as error:  # libraries that are missing or of another version: the import raises anything
        reason = f"openvino {release} is installed but cannot be loaded: {error}"
        return Probe(name, False, version=release, reason=reason, fix="pip install --force-reinstall openvino")
    if DEVICE not in devices:
        found = ", ".join(devices) or "none"
        reason = f"openvino {release} has no plug-in for the CPU; its devices: {found}"
        return Probe(name, False, version=release, reason=reason, fix="pip install --force-reinstall openvino")
    return Probe(name, True, version=release, device=DEVICE)
