"""Results as JSON: a mixin for dataclasses whose fields are their JSON object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

__all__ = ["JsonRecord"]


class JsonRecord:
    """A dataclass whose JSON object has one key for each field, in the order of the fields.

    A class whose JSON differs from its fields overrides `to_json`.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, with nested records, sequences, mappings and paths as plain JSON values."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
