"""What the terminal and the pages say in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["shapes_of"]


def shapes_of(inputs: Mapping[str, Any]) -> str:
    """Return the shapes of what a model was fed, for instance "x 1x3x224x224". inputs: as `verify --json` writes them."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs["shapes"].items())
