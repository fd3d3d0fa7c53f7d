"""Texts as a model's input takes them: UTF-8 bytes in rows of one length, filled up with zeros.

A bundle whose manifest has `preprocess: {"text": "utf-8"}` takes texts: clients send strings, data sets are lines of text, and
what its graph is fed are their bytes; the graph decodes them itself. A text that does not fit is refused, never cut.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.files import read_regular
from relu_deploy.tensors import Array, TensorSpec

__all__ = ["read_texts", "takes_texts", "to_bytes"]

#: Largest file of texts, in bytes.
MAX_TEXTS = 2**30


def takes_texts(manifest: Mapping[str, Any]) -> bool:
    """Return whether the manifest declares the model's input as text."""
    return "text" in (manifest.get("preprocess") or {})


def to_bytes(texts: Sequence[str | bytes], spec: TensorSpec) -> Array:
    """Return the texts as uint8 (N, L), L being the input's length. spec: the model's input.

    Raises InputError for a text that is empty, not UTF-8, holds U+0000, or is longer than L bytes.
    """
    length = spec.shape[1]
    assert isinstance(length, int)
    rows = np.zeros((len(texts), length), np.uint8)
    for place, text in enumerate(texts):
        which = "the text" if len(texts) == 1 else f"text {place + 1} of {len(texts)}"
        raw = _encoded(text, which)
        if not raw:
            raise InputError(f"{which} is empty", "give at least one character")
        if len(raw) > length:
            raise InputError(
                f"{which} has {len(raw)} bytes of UTF-8, and {spec.name!r} takes {length}",
                "shorten it, or export the model for longer ones with --input",
            )
        if 0 in raw:
            raise InputError(
                f"{which} holds a NUL character at byte {raw.index(0)}", "zero bytes are what texts are filled up with"
            )
        rows[place, : len(raw)] = np.frombuffer(raw, np.uint8)
    return rows


def _encoded(text: str | bytes, which: str) -> bytes:
    try:
        if isinstance(text, str):
            return text.encode()
        text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{which} is not UTF-8: byte {error.start} is {text[error.start]:#04x}", "encode it as UTF-8") from None  # type: ignore[index,str-bytes-safe]
    except UnicodeEncodeError:
        raise InputError(f"{which} holds half of a surrogate pair", "encode it as UTF-8") from None
    return text


def read_texts(file: Path, spec: TensorSpec, known: Sequence[str]) -> tuple[Array, Array | None]:
    """Return the texts in `file` as `to_bytes` does, and their labels, int64 (N,), where there are any.

    One text a line, UTF-8; empty lines and those that start with # are left out. A `.tsv` has `label<TAB>text` on each line.
    known: the model's labels; one that is none of them is -1. Raises InputError that names file and line.
    """
    texts, labels = [], []
    places = {label: at for at, label in reversed(list(enumerate(known)))}
    content = read_regular(file, MAX_TEXTS).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        label, tab, text = line.partition(b"\t") if file.suffix == ".tsv" else (b"", b"\t", line)
        if not tab:
            raise InputError(f"{file}, line {number}: there is no tab", "a .tsv has a label, a tab and a text on each line")
        try:
            texts.append(to_bytes([text], spec))
            labels.append(places.get(label.decode(), -1))
        except UnicodeDecodeError:
            raise InputError(f"{file}, line {number}: the label is not UTF-8", "encode it as UTF-8") from None
        except InputError as error:
            raise InputError(f"{file}, line {number}: {error.message}", error.hint) from None
    if not texts:
        raise InputError(f"there is no text in {file}", "write one on each line")
    return np.concatenate(texts), np.array(labels, np.int64) if file.suffix == ".tsv" else None
