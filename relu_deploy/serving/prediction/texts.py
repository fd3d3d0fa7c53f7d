"""Texts for models that take rows of bytes: the inputs that clients see, and how strings and bodies become feeds.

Clients see one string a row, BYTES of shape (N, 1) as in Triton, whatever length the graph's rows of bytes have. A text that
is empty, not UTF-8, holds NUL or is longer than that is refused.
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

__all__ = ["PreparedText", "client_specs", "encode_texts", "prepare_text"]


@dataclass(frozen=True)
class PreparedText:
    """A text as the model takes it.

    Attributes:
        feeds: Of as many rows as a fixed batch has, else one.
        text: The text.
        seconds: That the preparation took.
    """

    feeds: Feeds
    text: str
    seconds: float

    @property
    def description(self) -> dict[str, Any]:
        """Return the answer's fields about the text."""
        return {"text": {"characters": len(self.text), "bytes": len(self.text.encode())}}


def client_specs(manifest: Mapping[str, Any], specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs that clients see of a model whose graph has the inputs `specs`."""
    if not takes_texts(manifest):
        return tuple(specs)
    return tuple(TensorSpec(spec.name, "object", (*spec.shape[:1], 1)) for spec in specs)


def encode_texts(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Feeds:
    """Return the feeds of a graph with the inputs `specs`: strings for rows of bytes are encoded, others are passed on.

    Raises:
        InvalidArgument: If a text does not fit.
    """
    feeds = dict(inputs)
    for spec in specs:
        if spec.dtype == "uint8" and feeds[spec.name].dtype == object:
            feeds[spec.name] = _to_rows(feeds[spec.name].ravel().tolist(), spec)
    return feeds


def prepare_text(bundle: Bundle, body: bytes, content_type: str) -> PreparedText:
    """Return the text in `body` as `bundle`'s model takes it, without one final line end, which `curl` and editors add.

    Raises:
        InvalidArgument: For another content type or character set, or a text that does not fit.
    """
    started = time.perf_counter()
    kind, _, parameters = content_type.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(" \"'").partition(";")[0] or "utf-8"
    if kind.strip() not in ("", "text/plain", "application/octet-stream"):
        raise InvalidArgument(f"content type {kind.strip()!r} is not supported", "send a text as text/plain, in UTF-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidArgument(f"character set {charset!r} is not supported", "send the text in UTF-8")
    body = body.removesuffix(b"\n").removesuffix(b"\r")
    spec = bundle.inputs[0]
    row = _to_rows([body], spec)
    rows = spec.batch if isinstance(spec.batch, int) else 1
    return PreparedText({spec.name: np.repeat(row, rows, 0)}, body.decode(), time.perf_counter() - started)


def _to_rows(texts: Sequence[str | bytes], spec: TensorSpec) -> Array:
    try:
        return to_bytes(texts, spec)
    except InputError as error:
        raise InvalidArgument(error.message, error.hint) from None
