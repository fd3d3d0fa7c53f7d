"""Which model a path of the protocol asks for what."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Asked", "asked_of"]


class Asked(NamedTuple):
    """verb: infer, predict, relus and the like. version: None where the path names none."""

    model: str
    version: str | None
    verb: str


def asked_of(path: str) -> Asked | None:
    """Return what `/v2/models/MODEL[/versions/VERSION]/VERB` asks for, None for a path of another form."""
    match path.strip("/").split("/"):
        case ["v2", "models", model, verb]:
            return Asked(model, None, verb)
        case ["v2", "models", model, "versions", version, verb]:
            return Asked(model, version, verb)
    return None
