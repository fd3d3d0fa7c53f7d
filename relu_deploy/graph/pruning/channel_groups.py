"""Decide which channels can be removed: those that are constant wherever they are read.

Channels that nodes link together (a Relu's input and output, both branches of a residual Add and their sum) form a group,
and are removed together or not at all. A group can be removed when every node that reads it (through the columns of a Conv, Gemm or MatMul)
finds a constant there, which goes into that node's bias, or has no weight on it. What made the channel does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.intervals.constants import Constants
from relu_deploy.graph.intervals.operands import Operands, constant_of
from relu_deploy.graph.pruning.channels import ChannelMap, bias_of, channels_of, pads_with_zeros
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ChannelIndex", "ChannelReader", "PruningDecision", "decide"]

#: why a channel that is constant somewhere stays
OUTPUT = "it is a graph output"
INPUT = "it is fed"
SUBGRAPH = "a subgraph reads it"
PADDING = "it is not 0, and a node that reads it pads with zeros"
NO_BIAS = "it is not 0, and a MatMul that reads it has no bias"
RESIDUAL = "it is not constant after a residual Add"
ELSEWHERE = "it is also read where it is not constant"
LAST = "it is the last channel of its tensor"

ChannelMaps = Mapping["ir.Node", ChannelMap | str]


@dataclass(frozen=True)
class ChannelIndex:
    """Every channel of every tensor, numbered. values: the tensors; starts: number of the first channel, by name."""

    values: tuple[ir.Value, ...]
    starts: Mapping[str, int]
    count: int

    @classmethod
    def of_model(cls, model: ir.Model) -> ChannelIndex:
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        sizes = {value: channels for value in values if (channels := channels_of(value)) is not None}
        ends = np.cumsum([0, *sizes.values()]).tolist()
        return cls(tuple(sizes), {str(value.name): start for value, start in zip(sizes, ends, strict=False)}, ends[-1])

    def at(self, value: ir.Value | None) -> Array:
        """Return the numbers of a tensor's channels; none where it has no channels."""
        start = None if value is None else self.starts.get(str(value.name))
        return np.arange(0) if value is None or start is None else start + np.arange(channels_of(value) or 0)


@dataclass(frozen=True)
class ChannelReader:
    """A node that makes new channels out of those of `source`. uses: bool (C,), the channels that it has weights on."""

    node: ir.Node
    source: ir.Value
    uses: Array
    constants: Constants


@dataclass(frozen=True)
class PruningDecision:
    """Which channels are removed. All arrays have one element for each channel of `places`.

    goes: bool, whether it is removed. assumed: bool, whether that rests on an assumption. zero, nonzero: bool, whether readers find a constant of
    that kind. constant: bool, whether there is one at all before the next weights. reasons: why what is constant stays.
    """

    places: ChannelIndex
    readers: tuple[ChannelReader, ...]
    goes: Array
    assumed: Array
    zero: Array
    nonzero: Array
    constant: Array
    reasons: Array

    def gone(self, value: ir.Value | None) -> Array:
        """Return which channels of a tensor are removed, bool (C,)."""
        return self.goes[self.places.at(value)]


def decide(model: ir.Model, channel_maps: ChannelMaps, constants: Mapping[str, Constants]) -> PruningDecision:
    """Return which channels of `model` are removed. channel_maps: of every node; constants: of every tensor that has channels."""
    places = ChannelIndex.of_model(model)
    readers = tuple(_readers(channel_maps, constants))
    groups = _Groups(places, channel_maps)
    groups.keep_visible(model, channel_maps)
    groups.keep_varying(readers, channel_maps, constants)
    goes = groups.chosen()
    zero, nonzero, constant = _found(places, channel_maps, readers, constants)
    return PruningDecision(
        places, readers, goes, groups.assumed[groups.labels], zero, nonzero, constant, groups.reasons[groups.labels]
    )


class _Groups:
    """Groups of channels that are removed together, each by its least number, and the reasons to keep them."""

    def __init__(self, places: ChannelIndex, channel_maps: ChannelMaps) -> None:
        self.places = places
        self.labels = _components(places.count, [_links(places, channel_maps), _shared(places, channel_maps)])
        self.stays, self.assumed, self.is_read, self.is_added = (np.zeros(places.count, bool) for _ in range(4))
        self.reasons = np.full(places.count, "", object)

    def note(self, at: Array, reason: str) -> Array:
        """Give the groups of the places `at` this reason, where they have no other, and return their labels."""
        labels = self.labels[at]
        self.reasons[labels[self.reasons[labels] == ""]] = reason
        return labels

    def keep(self, at: Array, reason: str) -> None:
        self.stays[self.note(at, reason)] = True

    def keep_visible(self, model: ir.Model, channel_maps: ChannelMaps) -> None:
        """Keep graph inputs and outputs, and channels that a node uses in an unsupported way."""
        for value in self.places.values:
            if value.is_graph_output():
                self.keep(self.places.at(value), OUTPUT)
            if value.producer() is None:
                self.keep(self.places.at(value), INPUT)
            if any(reader.graph is not model.graph for reader in value.consumers()):
                self.keep(self.places.at(value), SUBGRAPH)
        for node, channel_map in channel_maps.items():
            if isinstance(channel_map, str):
                for touched in (*node.inputs, *node.outputs):
                    self.keep(self.places.at(touched), f"{node.name} ({node.op_type}) needs it: {channel_map}")
            elif len(channel_map.links) > 1 and node.op_type != "Concat":
                self.is_added[self.labels[self.places.at(node.outputs[0])]] = True

    def keep_varying(
        self, readers: Sequence[ChannelReader], channel_maps: ChannelMaps, constants: Mapping[str, Constants]
    ) -> None:
        """Keep what is not constant, or a constant that no bias can take, to a node that reads it."""
        for node in channel_maps:
            for value in node.outputs:
                if str(value.name) in constants:
                    self.note(self.places.at(value)[constants[str(value.name)].bordered], PADDING)
        for reader in readers:
            at, values = self.places.at(reader.source), reader.constants.values
            to_fold = reader.uses & ~np.isnan(values) & (values != 0)
            if reader.node.op_type == "Conv" and pads_with_zeros(Operands(reader.node, {}, 0)):
                self.keep(at[to_fold], PADDING)
            elif bias_of(reader.node) is None:
                self.keep(at[to_fold], NO_BIAS)
            varying = at[reader.uses & np.isnan(values)]
            is_added = self.is_added[self.labels[varying]]
            self.keep(varying[is_added], RESIDUAL)
            self.keep(varying[~is_added], ELSEWHERE)
            self.assumed[self.labels[at[reader.uses & reader.constants.assumed]]] = True
            self.is_read[self.labels[at]] = True

    def chosen(self) -> Array:
        """Return for every place whether it is removed: all that may be, but never all of a tensor."""
        goes = ~self.stays & self.is_read
        for value in self.places.values:
            labels = self.labels[self.places.at(value)]
            if len(labels) and goes[labels].all():
                # Keep a channel that is only assumed to be constant rather than one that is proven to be.
                last = labels[np.argmax(self.assumed[labels])]
                goes[last], self.reasons[last] = False, LAST
        return goes[self.labels]


def _links(places: ChannelIndex, channel_maps: ChannelMaps, *, through_weights: bool = True) -> tuple[Array, Array]:
    """Return pairs of places that nodes link together; through_weights: also those on both sides of a depthwise Conv."""
    left, right = [np.arange(0)], [np.arange(0)]
    for node, channel_map in channel_maps.items():
        if isinstance(channel_map, str) or (node.op_type == "Conv" and not through_weights):
            continue
        made = places.at(node.outputs[0])
        for link in channel_map.links:
            source = np.repeat(places.at(node.inputs[link.position]), link.block)
            left.append(source)
            right.append(made[link.offset : link.offset + len(source)])
    return np.concatenate(left), np.concatenate(right)


def _shared(places: ChannelIndex, channel_maps: ChannelMaps) -> tuple[Array, Array]:
    """Return pairs of places that belong to the same row or column of weights which several nodes use."""
    left, right = [np.arange(0)], [np.arange(0)]
    users: dict[tuple[object, ...], ir.Node] = {}
    for node, channel_map in channel_maps.items():
        if isinstance(channel_map, str) or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        first = users.setdefault((node.inputs[1], node.op_type, channel_map), node)
        left += [places.at(first.outputs[0]), places.at(first.inputs[0])]
        right += [places.at(node.outputs[0]), places.at(node.inputs[0])]
    return np.concatenate(left), np.concatenate(right)


def _components(count: int, pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Return for each of `count` places the least one that it hangs together with through `pairs`."""
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    labels = np.arange(count)
    while True:
        least = np.minimum(labels[left], labels[right])
        joined = labels.copy()
        for ends in (left, right, labels[left], labels[right]):
            np.minimum.at(joined, ends, least)
        joined = joined[joined]
        if np.array_equal(joined, labels):
            return labels
        labels = joined


def _readers(channel_maps: ChannelMaps, constants: Mapping[str, Constants]) -> Iterator[ChannelReader]:
    for node, channel_map in channel_maps.items():
        source = node.inputs[0] if node.inputs else None
        if isinstance(channel_map, str) or channel_map.columns is None or source is None:
            continue
        position, axis = channel_map.columns
        weights = np.asarray(constant_of(node.inputs[position]))
        others = tuple(other for other in range(weights.ndim) if other != axis)
        yield ChannelReader(node, source, np.any(weights, axis=others), constants[str(source.name)])


def _found(
    places: ChannelIndex, channel_maps: ChannelMaps, readers: Sequence[ChannelReader], constants: Mapping[str, Constants]
) -> tuple[Array, Array, Array]:
    """Return for every place what the next nodes with weights find there: whether a 0, another constant; and whether any."""
    stretches = _components(places.count, [_links(places, channel_maps, through_weights=False)])
    zero, nonzero, constant = (np.zeros(places.count, bool) for _ in range(3))
    seen = [(reader.source, reader.constants.values, reader.uses) for reader in readers]
    for node, channel_map in channel_maps.items():
        if isinstance(channel_map, ChannelMap) and channel_map.links and node.op_type == "Conv":
            values = constants[str(node.inputs[0].name)].values  # type: ignore[union-attr]
            seen.append((node.inputs[0], values, np.ones(len(values), bool)))  # type: ignore[arg-type]
    for source, values, uses in seen:
        at = stretches[places.at(source)]
        zero[at[uses & (values == 0)]] = True
        nonzero[at[uses & ~np.isnan(values) & (values != 0)]] = True
    for value in places.values:
        constant[stretches[places.at(value)[~np.isnan(constants[str(value.name)].values)]]] = True
    return zero[stretches], nonzero[stretches], constant[stretches]
