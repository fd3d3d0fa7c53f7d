"""Strings in, the bytes of them to the model: what a model that takes texts looks like from outside, and how a body becomes a text.

Clients see one string a row, BYTES of shape (N, 1) as Triton has them, whatever length the graph's rows of bytes have. A text
that is empty, not UTF-8, holds NUL or is longer than that is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.texts import takes_texts, to_bytes
from relu_deploy.errors import InputError
from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = ["PreparedText", "fed", "lacking_text", "outer_specs", "prepare_text"]


@dataclass(frozen=True)
class PreparedText:
    """A text as the model takes it. feeds: of as many rows as a fixed batch has, else one. seconds: it took."""

    feeds: Feeds
    text: str
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """Return what the answer says of it."""
        return {"text": {"characters": len(self.text), "bytes": len(self.text.encode())}}


def outer_specs(manifest: Mapping[str, Any], specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs that clients see of a model whose own are `specs`."""
    if not takes_texts(manifest):
        return tuple(specs)
    return tuple(TensorSpec(spec.name, "object", (*spec.shape[:1], 1)) for spec in specs)


def fed(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Feeds:
    """Return what the model is fed. inputs: as clients sent them. specs: the model's own. Raises Invalid for a text that does not fit."""
    feeds = dict(inputs)
    for spec in specs:
        if spec.dtype == "uint8" and feeds[spec.name].dtype == object:
            feeds[spec.name] = _bytes(feeds[spec.name].ravel().tolist(), spec)
    return feeds


def lacking_text(bundle: Bundle) -> tuple[str, str] | None:
    """Return why `bundle`'s model, which takes texts, is not asked by /predict, and what to do about it; None when it is."""
    named, specs = bundle.name, bundle.inputs
    if len(specs) != 1 or specs[0].dtype != "uint8" or len(specs[0].shape) != 2 or not isinstance(specs[0].shape[1], int):
        return f"the inputs of {named!r} are no rows of bytes of one length", "export it with one input, uint8 (N, L)"
    if bundle.manifest.get("task") != "classification":
        return (
            f"the manifest of {named!r} has no 'task' that a text has",
            "set it to classification in manifest.json, or use /infer",
        )
    return None


def prepare_text(bundle: Bundle, body: bytes, content_type: str) -> PreparedText:
    """Return the text in `body` as `bundle`'s model takes it. One line end behind it is left out, as `curl` and editors add it.

    Raises Invalid for another content type or character set, and for a text that does not fit.
    """
    started = time.perf_counter()
    kind, _, parameters = content_type.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(" \"'").partition(";")[0] or "utf-8"
    if kind.strip() not in ("", "text/plain", "application/octet-stream"):
        raise InvalidArgument(f"content type {kind.strip()!r} is not taken", "send a text as text/plain, in UTF-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidArgument(f"character set {charset!r} is not taken", "send the text in UTF-8")
    body = body.removesuffix(b"\n").removesuffix(b"\r")
    spec = bundle.inputs[0]
    row = _bytes([body], spec)
    rows = spec.batch if isinstance(spec.batch, int) else 1
    return PreparedText({spec.name: np.repeat(row, rows, 0)}, body.decode(), time.perf_counter() - started)


def _bytes(texts: Sequence[str | bytes], spec: TensorSpec) -> Array:
    try:
        return to_bytes(texts, spec)
    except InputError as error:
        raise InvalidArgument(error.message, error.hint) from None
