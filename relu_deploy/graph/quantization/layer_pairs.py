"""Find pairs of layers that can share a scale in every channel of the tensor between them, and view their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import Operands, constant_of, shape_of
from relu_deploy.graph.model import opset_of
from relu_deploy.graph.pruning.channels import WEIGHTED, channel_map_of
from relu_deploy.graph.relus import Relu, find_relus
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Layer", "LayerPair", "PathNode", "SkippedLayer", "find_layer_pairs", "grouped", "weights_of"]

#: operators beside the Relus through which the scale of every channel passes unchanged
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
HOMOGENEOUS = ("Dropout", "Identity", "LeakyRelu", "PRelu", *POOLS, *RESHAPES)


@dataclass(frozen=True)
class SkippedLayer(JsonRecord):
    """A layer whose rows keep their scale, and why. reader: the node at which its channels could not be followed, or ""."""

    producer: str
    reader: str
    reason: str


@dataclass(frozen=True)
class PathNode:
    """A node whose result has `rank` axes and keeps each channel in `block` neighboring places of axis 1."""

    node: ir.Node
    rank: int
    block: int

    def shaped(self, scale: Array) -> Array:
        """Return `scale` (channels,) so that it broadcasts to the node's result."""
        return np.repeat(scale, self.block).reshape(1, -1, *(1,) * (self.rank - 2))


@dataclass(frozen=True)
class LayerPair:
    """Two layers that may share scales, and the steps of the tensor between them; the first is the producer itself."""

    producer: ir.Node
    reader: ir.Node
    channels: int
    steps: tuple[PathNode, ...]

    def scale_by(self, exponent: Array, layers: Mapping[ir.Node, Layer]) -> None:
        producer, reader = layers[self.producer], layers[self.reader]
        producer.rows = exponent.reshape(producer.rows.shape)
        reader.columns = np.repeat(exponent, self.steps[-1].block).reshape(reader.columns.shape)

    def ranges(self, layers: Mapping[ir.Node, Layer]) -> tuple[Array, Array]:
        """Return log2 of the largest |weight| of each channel, in the producer and in the reader; -inf where there is none."""
        by_place = layers[self.reader].column_ranges()
        return layers[self.producer].row_ranges(), by_place.reshape(-1, self.steps[-1].block).max(1)


class _Unfit(Exception):
    """Why a layer cannot share scales: the name of the node at which that shows, or "", and the reason."""


def find_layer_pairs(model: ir.Model) -> tuple[list[LayerPair], list[SkippedLayer]]:
    relus = {relu.node: relu for relu in find_relus(model)}
    layer_pairs, skipped = [], []
    for node in model.graph:
        if node.op_type in WEIGHTED and is_standard(node):
            try:
                layer_pairs.append(_followed(model, node, relus))
            except _Unfit as unfit:
                skipped.append(SkippedLayer(str(node.name), *unfit.args))
    return layer_pairs, skipped


def _followed(model: ir.Model, producer: ir.Node, relus: Mapping[str, Relu]) -> LayerPair:
    """Return the pair from `producer` to the one layer that reads it. Raises _Unfit where there is none."""
    rows = grouped(producer, weights_of(producer, ""))
    if len(producer.inputs) > 2 and producer.inputs[2] is not None and constant_of(producer.inputs[2]) is None:
        raise _Unfit("", f"the bias of {producer.name} is computed")
    shape = shape_of(producer.outputs[0])
    if shape is None or (producer.op_type in ("Gemm", "MatMul") and len(shape) != 2):
        raise _Unfit("", f"the channels of {producer.outputs[0].name} are not known, or not on axis 1")
    steps = [PathNode(producer, len(shape), 1)]
    channels = rows.shape[0] * rows.shape[1]
    while True:
        node, position = _only_reader(model, steps[-1].node)
        if node.op_type in WEIGHTED and position == 0:
            _check_reader(node, steps[-1], channels)
            return LayerPair(producer, node, channels, tuple(steps))
        steps.append(_through(node, position, steps[-1], relus.get(str(node.name)), opset_of(model)))


def _only_reader(model: ir.Model, node: ir.Node) -> tuple[ir.Node, int]:
    value = node.outputs[0]
    readers = [reader for reader, _ in value.uses()]
    if value.is_graph_output():
        raise _Unfit("", f"{value.name} is an output of the graph")
    if len(readers) != 1 or readers[0].graph is not model.graph:
        names = ", ".join(str(reader.name) for reader in readers)
        raise _Unfit("", f"{value.name} is read by {names or 'nothing'}: it must be one node of the top graph, once")
    return next(iter(value.uses()))


def _check_reader(node: ir.Node, step: PathNode, channels: int) -> None:
    weights = weights_of(node, str(node.name))
    groups, _, inputs, _ = grouped(node, weights).shape
    has_space = node.op_type in ("Conv", "ConvTranspose")
    fits = step.block == 1 and weights.ndim == step.rank if has_space else step.rank == 2
    if not fits or groups * inputs != channels * step.block or Operands(node, {}, 0).attribute("transA", 0):
        raise _Unfit(str(node.name), f"{node.name} does not read {step.node.outputs[0].name} channel by channel")


def weights_of(node: ir.Node, at: str) -> Array:
    weights = constant_of(node.inputs[1])
    if weights is None:
        raise _Unfit(at, f"the weights of {node.name} are computed")
    if weights.dtype != np.float32 or weights.ndim < 2 or (weights.ndim > 2 and node.op_type == "MatMul"):
        raise _Unfit(at, f"the weights of {node.name} are {weights.dtype.name} of rank {weights.ndim}, not a float32 layer's")
    return weights


def _through(node: ir.Node, position: int, step: PathNode, relu: Relu | None, opset: int) -> PathNode:
    """Return the step that `node` is when its input at `position` is the result of `step`. Raises _Unfit."""
    operands, name = Operands(node, {}, opset), str(node.name)
    if relu is not None and relu.upper is not None and opset < 8:
        raise _Unfit(name, f"a bound per channel needs operator set 8, the graph has {opset}")
    if node.op_type == "Pad" and position == 0 and _pads_with_zeros(operands, step.rank):
        return PathNode(node, step.rank, step.block)
    if node.op_type == "BatchNormalization":
        raise _Unfit(name, f"the batch norm {name} follows it: fold it first")
    is_relu = relu is not None and (relu.upper is None or relu.upper > 0)
    is_bias = node.op_type == "Add" and operands.constant(1 - position) is not None
    if not is_relu and not is_bias and (position != 0 or node.op_type not in HOMOGENEOUS):
        raise _Unfit(name, f"{name} ({node.op_type}) does not pass on a scale per channel")
    channel_map = channel_map_of(node, opset)
    if isinstance(channel_map, str) or len(channel_map.links) != 1:
        raise _Unfit(name, f"{name} ({node.op_type}): {channel_map if isinstance(channel_map, str) else 'it joins channels'}")
    return PathNode(node, len(shape_of(node.outputs[0]) or ()), step.block * channel_map.links[0].block)


def _pads_with_zeros(operands: Operands, rank: int) -> bool:
    """Return whether a Pad adds only zeros, or copies of what is there, and no channels."""
    pads, value = operands.integers(1, "pads"), operands.constant(2)
    if pads is None or len(pads) != 2 * rank or operands.has(3) or pads[1] or pads[rank + 1]:
        return False
    is_zero = not value.any() if value is not None else not operands.has(2) and not operands.attribute("value", 0.0)
    return is_zero or str(operands.attribute("mode", "constant")) != "constant"


def grouped(node: ir.Node, weights: Array) -> Array:
    """Return a view of the `weights` of a layer as (groups, outputs, inputs, kernel)."""
    operands = Operands(node, {}, 0)
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = int(operands.attribute("group", 1))
        view = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
        return view if node.op_type == "Conv" else view.swapaxes(1, 2)
    matrix = weights if node.op_type == "Gemm" and operands.attribute("transB", 0) else weights.T
    return matrix[None, :, :, None]


@dataclass
class Layer:
    """log2 of the largest |weight| from each input to each output of a layer, and of its scales.

    largest: (groups, outputs, inputs), -inf where all are 0. rows: (groups, outputs), what divides them.
    columns: (groups, inputs), what multiplies them: the scales of the layer before.
    """

    node: ir.Node
    largest: Array
    rows: Array
    columns: Array

    @classmethod
    def of(cls, node: ir.Node) -> Layer:
        with np.errstate(divide="ignore"):
            largest = np.log2(np.abs(grouped(node, weights_of(node, ""))).max(3))
        groups, outputs, inputs = largest.shape
        return cls(node, largest, np.zeros((groups, outputs)), np.zeros((groups, inputs)))

    def row_ranges(self) -> Array:
        return ((self.largest + self.columns[:, None].astype(np.float32)).max(2) - self.rows).reshape(-1)

    def column_ranges(self) -> Array:
        return ((self.largest - self.rows[:, :, None].astype(np.float32)).max(1) + self.columns).reshape(-1)
