"""Check that weights stored outside the ONNX file are files inside the model's folder, before anything reads them.

A model from elsewhere could otherwise name any file of this machine as its weights.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.traversal import tensors_of

if TYPE_CHECKING:
    import onnx

__all__ = ["check_external_data"]

HINT = "keep the weights in the model's own folder, or save the model in one file"


def check_external_data(proto: onnx.ModelProto, path: Path) -> bool:
    """Check every weight of `proto` that lies in another file, and return whether there is one.

    Args:
        proto: The model, its weights not read.
        path: The model's file; locations are relative to its folder.

    Raises:
        InputError: If a location is absolute, leaves the folder (with `..` or through a link), is not an ordinary file, or
            is shorter than the weight.
    """
    import onnx

    folder = path.resolve().parent
    sizes: dict[str, int] = {}
    for graph in (proto.graph, *(_as_graph(function) for function in proto.functions)):
        for tensor in tensors_of(graph):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            fields = {entry.key: entry.value for entry in tensor.external_data}
            location = fields.get("location", "")
            if location not in sizes:
                sizes[location] = _size_of(location, folder, f"{path}: the weights of {tensor.name!r}")
            _check_extent(tensor, fields, sizes[location], path)
    return bool(sizes)


def _as_graph(function: onnx.FunctionProto) -> onnx.GraphProto:
    import onnx

    return onnx.GraphProto(node=function.node)


def _size_of(location: str, folder: Path, what: str) -> int:
    """Return the bytes of the file at `location`, which must be an ordinary file inside `folder`."""
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    if not location or "\0" in location:
        raise InputError(f"{what} have no file name", HINT)
    if ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise InputError(f"{what} are outside the model's folder: {location}", HINT)
    file = folder / location
    try:
        inside = file.resolve().is_relative_to(folder)
        status = file.stat()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be resolved"
        raise InputError(f"{what} are in {file}: {reason}", "put that file beside the model") from error
    if not inside:
        raise InputError(f"{what} are outside the model's folder: {location} is a link to {file.resolve()}", HINT)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{what} are in {file}, which is not an ordinary file", HINT)
    return status.st_size


def _check_extent(tensor: onnx.TensorProto, fields: dict[str, str], size: int, path: Path) -> None:
    import onnx_ir as ir

    elements = 1
    for dim in tensor.dims:
        elements *= dim
    needed = -(-elements * int(ir.DataType(tensor.data_type).bitwidth) // 8)
    try:
        offset, length = int(fields.get("offset", "0") or 0), int(fields.get("length", "") or needed)
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != needed or offset + needed > size:
        raise InputError(
            f"{path}: the weights of {tensor.name!r} need {needed} bytes, {fields['location']} does not hold them",
            "check that the weights file was copied whole, and belongs to this model",
        )
