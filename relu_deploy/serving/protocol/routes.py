"""Which model a path of the protocol asks for what."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ModelRoute", "asked_of"]


class ModelRoute(NamedTuple):
    """verb: infer, predict, relus and the like. version: None where the path names none."""

    model: str
    version: str | None
    verb: str


def asked_of(path: str) -> ModelRoute | None:
    """Return what `/v2/models/MODEL[/versions/VERSION]/VERB` asks for, None for a path of another form."""
    match path.strip("/").split("/"):
        case ["v2", "models", model, verb]:
            return ModelRoute(model, None, verb)
        case ["v2", "models", model, "versions", version, verb]:
            return ModelRoute(model, version, verb)
    return None
