"""Converts texts to a model's input: rows of UTF-8 bytes, padded with zeros to the same length.

A bundle whose manifest has `preprocess: {"text": "utf-8"}` takes texts: clients send strings, data sets are lines of text, and
the graph decodes their bytes. A text that is too long is an error; texts are never truncated.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.storage.files import read_regular
from relu_deploy.tensors import Array, TensorSpec

__all__ = ["read_texts", "takes_texts", "to_bytes"]

#: Largest file of texts, in bytes.
MAX_TEXTS = 2**30


def takes_texts(manifest: Mapping[str, Any]) -> bool:
    """Return whether the manifest declares the model's input as text."""
    return "text" in (manifest.get("preprocess") or {})


def to_bytes(texts: Sequence[str | bytes], spec: TensorSpec) -> Array:
    """Convert texts to uint8 (N, L), where L is the length of the input.

    Args:
        texts: The texts, as strings or UTF-8.
        spec: Specification of the model's input.

    Raises:
        InputError: If a text is empty, is not UTF-8, contains U+0000, or is longer than L bytes.
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
            raise InputError(f"{which} holds a NUL character at byte {raw.index(0)}", "zero bytes are used as padding")
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
    """Read a file with one text on each line, in UTF-8. Empty lines and lines that start with # are ignored.

    Args:
        file: The file. A `.tsv` has `label<TAB>text` on each line.
        spec: Specification of the model's input.
        known: Names of the model's classes.

    Returns:
        The texts as `to_bytes` converts them, and for a `.tsv` their labels, int64 (N,), -1 for unknown names.

    Raises:
        InputError: If a line cannot be converted; the message names file and line.
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
