"""Map the channels of a node's inputs to those of its result, and to the constants that shrink with them.

A channel is a place on axis 1 of a tensor: a feature map, or one feature of a 2-D tensor. A node passes its channels on
(Relu, pooling, BatchNormalization, a depthwise Conv, Add, Concat, Flatten), or it reads them all to make new ones (Conv,
Gemm, MatMul), or it does something else with them, which is not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import Operands, Shape, constant_of, shape_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["WEIGHTED", "ChannelLink", "ChannelMap", "bias_of", "channel_map_of", "channels_of", "pads_with_zeros"]

#: operators whose results have channels of their own, one for each row of their weights
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class ChannelLink:
    """Channel c of the input at `position` is the channels offset + c * block to offset + (c + 1) * block of the result."""

    position: int
    block: int = 1
    offset: int = 0


@dataclass(frozen=True)
class ChannelMap:
    """What happens to the channels of a node's inputs. Positions are those of its inputs.

    links: inputs whose channels are the result's. rows: (position, axis) of constants with one place for each channel of the
    result. columns: the same for channels of input 0, where the result has new ones. sizes: position of a constant shape
    whose entry 1 counts the result's channels.
    """

    links: tuple[ChannelLink, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None
    sizes: int | None = None


def channels_of(value: ir.Value) -> int | None:
    """Return how many channels a tensor has, None where that is not known or it has no axis 1."""
    shape = shape_of(value)
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    return channels if isinstance(channels, int) else None


def channel_map_of(node: ir.Node, opset: int) -> ChannelMap | str:
    """Return how `node` passes channels on; where it does not, or not in a way that is known here, why not."""
    find = CHANNEL_MAPS.get(node.op_type) if is_standard(node) else None
    if find is None:
        return "what it does with channels is not known"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "its second result is read"
    channels = channels_of(node.outputs[0])
    if channels is None:
        return "the number of its channels is not known"
    operands = Operands(node, {}, opset)
    channel_map = find(operands)
    fits = isinstance(channel_map, str) or _fits(operands, channel_map, channels)
    return channel_map if fits else "the graph's shapes do not fit its weights"


def _fits(operands: Operands, channel_map: ChannelMap, channels: int) -> bool:
    """Return whether everything that would shrink has the size that the shapes of the graph say."""

    def size(position: int, axis: int) -> int | None:
        constant = operands.constant(position)
        return None if constant is None else int(constant.shape[axis])

    ends = []
    for link in channel_map.links:
        value = operands.node.inputs[link.position]
        ends.append(link.offset + link.block * ((None if value is None else channels_of(value)) or 0))
    if operands.node.op_type == "Concat":
        ends = ends[-1:]
    source = operands.node.inputs[0]
    is_read_whole = channel_map.columns is None or (source is not None and size(*channel_map.columns) == channels_of(source))
    return is_read_whole and all(end == channels for end in (*ends, *(size(*row) for row in channel_map.rows)))


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the node and the position of its input where a number for each channel of `node`'s result can be added.

    node: a Conv, a Gemm, or a MatMul, whose bias is the constant of an Add that alone reads it. None where there is none.
    """
    if node.op_type in ("Conv", "Gemm"):
        return node, 2
    readers = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(readers) != 1 or node.outputs[0].is_graph_output() or readers[0][0].op_type != "Add":
        return None
    add, position = readers[0]
    addend = constant_of(add.inputs[1 - position])
    is_row = addend is not None and (addend.size == 1 or addend.shape[-1] == addend.size == channels_of(node.outputs[0]))
    return (add, 1 - position) if is_row else None


def pads_with_zeros(operands: Operands) -> bool:
    """Return whether windows of a Conv or a pool may reach over the border."""
    automatic = str(operands.attribute("auto_pad", "NOTSET"))
    if automatic in ("NOTSET", "VALID"):
        return automatic == "NOTSET" and any(operands.attribute("pads", ()))
    weights = operands.constant(1)
    kernel = operands.attribute("kernel_shape", () if weights is None else weights.shape[2:])
    return any(size != 1 for size in kernel)  # SAME adds nothing around a 1x1 kernel, whatever its stride


# ---------------------------------------------------------------- new channels


def _conv(operands: Operands) -> ChannelMap | str:
    weights, groups = operands.constant(1), int(operands.attribute("group", 1))
    if weights is None or (operands.has(2) and operands.constant(2) is None):
        return "its weights are computed"
    rows = ((1, 0), (2, 0)) if operands.has(2) else ((1, 0),)
    if groups == 1:
        return ChannelMap(rows=rows, columns=(1, 1))
    if weights.shape[1] == 1 and weights.shape[0] % groups == 0:
        return ChannelMap((ChannelLink(0, weights.shape[0] // groups),), rows)
    return "a convolution in groups keeps the sizes of its groups"


def _gemm(operands: Operands) -> ChannelMap | str:
    weights, bias, is_transposed = operands.constant(1), operands.constant(2), bool(operands.attribute("transB", 0))
    if weights is None or (operands.has(2) and bias is None):
        return "its weights are computed"
    if operands.attribute("transA", 0):
        return "it reads its input transposed"
    features = weights.shape[0 if is_transposed else 1]
    rows = [(1, 0 if is_transposed else 1)]
    if bias is not None and bias.ndim and bias.shape[-1] == features:
        rows.append((2, bias.ndim - 1))
    return ChannelMap(rows=tuple(rows), columns=(1, 1 if is_transposed else 0))


def _matmul(operands: Operands) -> ChannelMap | str:
    weights, shape = operands.constant(1), operands.shape()
    if weights is None or weights.ndim != 2 or shape is None or len(shape) != 2:
        return "it is no product of a matrix with constant weights"
    return ChannelMap(rows=((1, 1),), columns=(1, 0))


# ---------------------------------------------------------------- the same channels


def _same(_: Operands) -> ChannelMap | str:
    return ChannelMap((ChannelLink(0),))


def _dropout(operands: Operands) -> ChannelMap | str:
    training = operands.has(2) and (operands.constant(2) is None or bool(np.any(operands.constant(2))))
    return "it drops at random" if training else ChannelMap((ChannelLink(0),))


def _batch_norm(operands: Operands) -> ChannelMap | str:
    if operands.attribute("training_mode", 0) or any(operands.constant(position) is None for position in range(1, 5)):
        return "its statistics are computed"
    return ChannelMap((ChannelLink(0),), tuple((position, 0) for position in range(1, 5)))


def _reduce(operands: Operands) -> ChannelMap | str:
    shape, axes = operands.shape(), operands.integers(1, "axes")
    if shape is None or axes is None or any(axis % len(shape) < 2 for axis in axes):
        return "it may reduce over channels"
    return ChannelMap((ChannelLink(0),))


def _elementwise(operands: Operands) -> ChannelMap | str:
    result = operands.node.outputs[0]
    channels, rank = channels_of(result), len(shape_of(result) or ())
    links, rows = [], []
    if operands.attribute("broadcast", 0):
        return "it spreads as operator sets before 7 did"
    for position in range(len(operands)):
        constant = operands.constant(position)
        if constant is not None:
            axis = constant.ndim - rank + 1
            if axis >= 0 and constant.shape[axis] != 1:
                rows.append((position, axis))
        elif operands.has(position):
            shape = operands.shape(position)
            if shape is None or len(shape) != rank or shape[1] != channels:
                return "it spreads one channel over all"
            links.append(ChannelLink(position))
    return ChannelMap(tuple(links), tuple(rows))


def _concat(operands: Operands) -> ChannelMap | str:
    rank = len(operands.result_shape() or ())
    links, offset = [], 0
    if int(operands.attribute("axis", 1)) not in (1, 1 - rank):
        return "it does not join channels"
    for position in range(len(operands)):
        value = operands.node.inputs[position]
        channels = None if value is None or operands.constant(position) is not None else channels_of(value)
        if channels is None:
            return "the channels that it joins are not known"
        links.append(ChannelLink(position, offset=offset))
        offset += channels
    return ChannelMap(tuple(links))


def _reshape(operands: Operands) -> ChannelMap | str:
    block = _block(operands.shape(), operands.result_shape())
    if block is None:
        return "it takes channels apart"
    if operands.node.op_type != "Reshape":
        return ChannelMap((ChannelLink(0, block),))
    sizes = operands.integers(1)
    return "the shape that it makes is computed" if sizes is None else ChannelMap((ChannelLink(0, block),), sizes=1)


def _block(before: Shape | None, after: Shape | None) -> int | None:
    """Return how many places of the new axis 1 each old channel fills, None where it does not fill whole ones."""
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return None
    old, new = ([size for size in shape[1:] if isinstance(size, int)] for shape in (before, after))
    if len(old) < len(before) - 1 or len(new) < len(after) - 1 or prod(old) != prod(new) or not prod(old):
        return None
    return prod(old[1:]) // prod(new[1:]) if prod(old[1:]) % prod(new[1:]) == 0 else None


#: operator of the default domain → how it passes channels on
CHANNEL_MAPS: dict[str, Callable[[Operands], ChannelMap | str]] = {
    **dict.fromkeys(("Abs", "Add", "Clip", "Div", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max"), _elementwise),
    **dict.fromkeys(("Min", "Mul", "Neg", "PRelu", "Relu", "Sigmoid", "Sub", "Sum", "Tanh"), _elementwise),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _same),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin"), _reduce),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
