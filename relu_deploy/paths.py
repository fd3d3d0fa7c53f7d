"""Files of the package: the shipped models, and the JSON Schemas of its results and of the manifest; and the cache of the user."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "models_folder", "schema_file", "schema_names"]

PACKAGE = Path(__file__).parent


def models_folder() -> Path:
    """Return the folder of the shipped models, in an installed package or in a checkout."""
    installed = PACKAGE / "_models"
    return installed if installed.is_dir() else PACKAGE.parent / "models"


def schema_names() -> list[str]:
    """Return the names of the JSON Schemas: the verbs, and "bundle" for manifest.json."""
    return sorted([*(file.stem for file in (PACKAGE / "schemas").glob("*.json")), "bundle"])


def schema_file(name: str) -> Path:
    """Return the JSON Schema called `name`, one of `schema_names`."""
    return PACKAGE / "manifest.schema.json" if name == "bundle" else PACKAGE / "schemas" / f"{name}.json"


def cache_folder(purpose: str) -> Path:
    """Return the folder of the user's cache for `purpose`, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relu_deploy" / purpose
