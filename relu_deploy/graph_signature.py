"""The inputs and outputs of an ONNX file, read without parsing its weights: fast for a file of any size."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_signature"]

#: Field numbers of the messages in onnx.proto.
GRAPH, INITIALIZER, INPUT, OUTPUT, TENSOR_NAME = 7, 5, 11, 12, 8


def check_signature(file: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a manifest's inputs and outputs are those of the graph in `file`.

    A file that is no ONNX graph passes: it is refused, with a better message, when it is loaded.

    Raises:
        InputError: Names the input or output that differs.
    """
    found = _signature(file)
    if found is None:
        return
    for side, values in zip(("inputs", "outputs"), found, strict=True):
        listed = {str(each["name"]): each for each in manifest[side]}
        actual = {value.name: value for value in values}
        for name in [*listed, *actual]:
            if name not in listed or name not in actual or not _agree(listed[name], actual[name]):
                raise InputError(
                    f"{file}: {side}: {name!r} is not in the graph as the manifest describes it", "export the model again"
                )


def _agree(listed: Mapping[str, Any], value: onnx.ValueInfoProto) -> bool:
    """Return whether type and rank are the same, as far as the graph says."""
    from onnx import helper

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return True
    try:
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except (KeyError, TypeError, ValueError):
        return True
    dims = kind.shape.dim
    if listed["dtype"] != dtype or (kind.HasField("shape") and len(dims) != len(listed["shape"])):
        return False
    fixed = zip(dims, listed["shape"], strict=False) if kind.HasField("shape") else ()
    return all(not (isinstance(size, int) and dim.dim_value > 0) or dim.dim_value == size for dim, size in fixed)


def _signature(file: Path) -> tuple[Sequence[onnx.ValueInfoProto], Sequence[onnx.ValueInfoProto]] | None:
    """Return the inputs that must be fed and the outputs; None if the file is no ONNX graph."""
    if not file.stat().st_size:
        return None
    from google.protobuf.message import DecodeError
    from onnx import ValueInfoProto

    inputs, outputs, weights = [], [], set()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            for start, end in (span for number, *span in _fields(content, 0, len(content)) if number == GRAPH):
                for number, first, last in _fields(content, start, end):
                    if number == INPUT:
                        inputs.append(ValueInfoProto.FromString(content[first:last]))
                    elif number == OUTPUT:
                        outputs.append(ValueInfoProto.FromString(content[first:last]))
                    elif number == INITIALIZER:
                        weights |= {
                            content[a:b].decode() for field, a, b in _fields(content, first, last) if field == TENSOR_NAME
                        }
        except (DecodeError, IndexError, UnicodeDecodeError):
            return None
    if not outputs:
        return None
    return [value for value in inputs if value.name not in weights], outputs


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field of the protobuf message in `content[start:end]`."""
    position = start
    while position < end:
        key, position = _varint(content, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(content, position)
        elif kind == 2:
            length, position = _varint(content, position)
            if position + length > end:
                raise IndexError(position)
            yield key >> 3, position, position + length
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise IndexError(position)


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError(position)
