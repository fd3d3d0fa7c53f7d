"""Refuse graphs with a tensor too large for this machine, or with a Loop that runs too long, before anything runs.

A file of a few hundred bytes can compute a tensor of any size: with ConstantOfShape, Expand or Tile, or by joining or broadcasting
tensors again and again. The sizes are inferred from the constants in the graph. What depends on the data that is fed cannot be known before the graph runs.
"""

from __future__ import annotations

import os
from collections import ChainMap
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.arithmetic import check_arithmetic
from relu_deploy.graph.loading.loops import check_loops, growing_states
from relu_deploy.graph.loading.traversal import bodies_of, outer_reads
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.ranks import TooManyDimensions

if TYPE_CHECKING:
    import onnx

__all__ = ["TENSORS", "check_resources", "memory_limit", "memory_size", "set_memory_limit"]

#: a tensor is held in float32 and, more than once, in float64: the share of the memory that one may take by default
DEFAULT_SHARE = 1 / 16
#: tensors of the largest size that an evaluation may hold at once: all of the memory by default
TENSORS = 16
#: where the size of the memory is unknown
DEFAULT_MEMORY = 2**35
#: constants that are copied into bodies
MOST_COPIES = 2**14
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
    """Check the sizes of the tensors of `proto`, those of the graphs inside it included. Varying dimensions count as 1.

    Args:
        proto: The graph, its nodes in order.
        where: The file's name for error messages.

    Raises:
        InputError: If a tensor needs more than `memory_limit` bytes, or has more dimensions than runtimes support, or if a Loop
            never ends or runs too long (see `check_loops`).
        TooLong: If runs are limited, and one would take hours (see `check_arithmetic`).
    """
    check_loops(proto, where)
    _check_values(proto.graph, where)
    light = _without_weights(proto)
    try:
        inferred = infer_with_values(light)
    except TooManyDimensions as error:
        raise InputError(f"{where}: {error}", "export the model again with tensors of fewer dimensions") from None
    except Exception:  # a graph that inference does not accept is refused elsewhere, with its reason
        return
    _check_values(inferred.graph, where)
    # The shapes of more inputs of Scans are known now.
    check_loops(inferred, where)
    check_arithmetic(inferred, where)
    _check_growth(inferred, where)


def _check_growth(model: onnx.ModelProto, where: str) -> None:
    """Check the states of Loops that grow with each turn."""
    import onnx

    def infer(graph: onnx.GraphProto) -> onnx.GraphProto:
        body = onnx.ModelProto(
            ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
        )
        return infer_with_values(body).graph

    limit = memory_limit()
    try:
        grown = list(growing_states(model.graph, infer))
    except Exception:  # a body that inference does not accept is refused elsewhere, with its reason
        return
    for loop, state, elements in grown:
        if elements > limit:
            raise InputError(
                f"{where}: the Loop {loop!r} makes {state!r} larger at each turn, {elements:.2g} elements in the end; "
                f"at most {limit / 1e9:.4g} GB are allowed here",
                "let the Loop run fewer turns, or allow more with --max-memory",
            )


def _check_values(graph: onnx.GraphProto, where: str) -> None:
    limit = memory_limit()
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        for value in (*current.input, *current.value_info, *current.output):
            if value.type.WhichOneof("value") == "tensor_type" and (size := _bytes_of(value)) > limit:
                raise InputError(
                    f"{where}: the tensor {value.name!r} needs {size / 1e9:.4g} GB, at most {limit / 1e9:.4g} GB are allowed here",
                    "give smaller input shapes, or allow more with --max-memory",
                )
        for node in current.node:
            waiting += bodies_of(node)


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
    _pass_constants_on(graph)
    return light


def _pass_constants_on(graph: onnx.GraphProto) -> None:
    """Copy the constants that the graphs inside `graph` read from around them into those, in place.

    Inference does not see the values of the tensors around a graph.
    """
    waiting: list[tuple[onnx.GraphProto, ChainMap[str, onnx.TensorProto]]] = [(graph, ChainMap())]
    left = MOST_COPIES
    while waiting:
        current, outer = waiting.pop()
        constants = list(current.initializer)
        known = outer.new_child({tensor.name: tensor for tensor in constants if tensor.ByteSize() <= LARGEST_KEPT})
        for node in current.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.HasField("t") and attribute.t.ByteSize() <= LARGEST_KEPT:
                    known[node.output[0]] = attribute.t
            for body in bodies_of(node):
                taken = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
                taken |= {name for each in body.node for name in each.output}
                reads = {name for each in body.node for name in (*each.input, *outer_reads(each))} - taken
                for name in [name for name in sorted(reads) if name in known][:left]:
                    body.initializer.add().CopyFrom(known[name])
                    body.initializer[-1].name = name
                    left -= 1
                waiting.append((body, known))
