"""Where the shipped models are: inside the installed package, or at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["models_folder"]


def models_folder() -> Path:
    """Return the folder of the shipped models; it exists in a wheel and in a checkout alike."""
    package = Path(__file__).parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"
