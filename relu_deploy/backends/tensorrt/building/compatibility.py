"""Which versions of TensorRT and which GPUs an engine runs on, by the options that it was built with.

Without such an option an engine runs on its own version and GPU only. Rules: NVIDIA's TensorRT documentation, "Version
Compatibility" and "Hardware Compatibility".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from relu_deploy.backends.nvidia.driver import Gpu

__all__ = ["runs_on", "runs_version"]

#: version-compatible engines of a major version that a later one runs too
CARRIED_OVER = {(10, 11)}
AMPERE = (8, 0)


def runs_version(facts: Mapping[str, Any], installed: str) -> bool:
    """Return whether `installed` can run an engine: its own version, or a later one if the engine is version-compatible.

    Args:
        facts: Metadata of the engine.
        installed: Version of the installed library.
    """
    built = str(facts.get("library"))
    if built == installed:
        return True
    if not facts.get("options", {}).get("version_compatible"):
        return False
    old, new = _parts(built), _parts(installed)
    return old <= new and (old[:1] == new[:1] or (*old[:1], *new[:1]) in CARRIED_OVER)


def runs_on(facts: Mapping[str, Any], gpu: Gpu) -> bool:
    """Return whether `gpu` can run an engine that was built on another GPU, because it is hardware-compatible.

    Args:
        facts: Metadata of the engine; its `device` is the text of the `Gpu` that it was built on.
        gpu: The GPU to run it on.
    """
    found = re.search(r"\(compute capability (\d+)\.(\d+)\)$", str(facts.get("device")))
    if found is None:
        return False
    built_on = (int(found[1]), int(found[2]))
    level = facts.get("options", {}).get("hardware_compatible")
    if level == "ampere-plus":
        return built_on >= AMPERE and gpu.capability >= AMPERE
    return bool(level == "same-compute-capability" and gpu.capability == built_on)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
