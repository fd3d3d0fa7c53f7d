"""Refuse graphs with a tensor too large for this machine, before anything allocates it.

A file of a few hundred bytes can compute a tensor of any size: ConstantOfShape, Expand, Resize, Tile, Pad, Range. Their sizes
are inferred from the constants in the graph. What depends on the data that is fed cannot be known before the graph runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.propagation import infer_with_values

if TYPE_CHECKING:
    import onnx

__all__ = ["check_resources", "memory_limit", "memory_size", "set_memory_limit"]

#: a tensor is held in float32 and, more than once, in float64: the share of the memory that one may take by default
DEFAULT_SHARE = 1 / 16
#: where the size of the memory is unknown
DEFAULT_MEMORY = 2**35
#: operators whose result may be much larger than what they read
GROWING = frozenset(
    [
        "ConstantOfShape",
        "Expand",
        "EyeLike",
        "OneHot",
        "Pad",
        "RandomNormal",
        "RandomUniform",
        "Range",
        "Resize",
        "Tile",
        "Upsample",
    ]
)
#: constants above this many bytes do not travel through shape inference
LARGEST_KEPT = 1024

_limit: list[int] = []


def memory_limit() -> int:
    """Return the most bytes that one tensor of a graph may have."""
    return _limit[0] if _limit else int(memory_size() * DEFAULT_SHARE)


def memory_size() -> int:
    """Return the bytes of this machine's memory, a guess where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return DEFAULT_MEMORY


def set_memory_limit(limit: int | None) -> None:
    """Set the most bytes that one tensor of a graph may have in this process; None restores the default."""
    _limit[:] = [] if limit is None else [limit]


def check_resources(proto: onnx.ModelProto, where: str) -> None:
    """Raise InputError where a tensor of `proto` needs more than `memory_limit` bytes. Varying dimensions count as 1."""
    _check_values([*proto.graph.input, *proto.graph.value_info, *proto.graph.output], where)
    if not any(node.op_type in GROWING for node in proto.graph.node):
        return
    light = _without_weights(proto)
    try:
        inferred = infer_with_values(light)
    except Exception:  # a graph that inference does not accept is refused elsewhere, with its reason
        return
    _check_values([*inferred.graph.value_info, *inferred.graph.output], where)


def _check_values(values: list[onnx.ValueInfoProto], where: str) -> None:
    limit = memory_limit()
    for value in values:
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        size = _bytes_of(value)
        if size > limit:
            raise InputError(
                f"{where}: the tensor {value.name!r} needs {size / 1e9:.4g} GB, at most {limit / 1e9:.4g} GB are allowed here",
                "give smaller input shapes, or allow more with --max-memory",
            )


def _bytes_of(value: onnx.ValueInfoProto) -> int:
    import onnx_ir as ir

    elements = 1
    for dim in value.type.tensor_type.shape.dim:
        elements *= dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else 1
    try:
        bits = int(ir.DataType(value.type.tensor_type.elem_type).bitwidth)
    except (TypeError, ValueError):  # strings have no width
        bits = 64
    return elements * bits // 8


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `proto` whose large weights are inputs without a value."""
    import onnx

    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import, functions=proto.functions)
    graph = light.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    for value in proto.graph.output:
        # A recorded shape would be merged with the inferred one.
        output = graph.output.add(name=value.name)
        if value.type.WhichOneof("value") == "tensor_type":
            output.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        else:
            output.CopyFrom(value)
    known = {value.name for value in graph.input}
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) <= LARGEST_KEPT and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light
