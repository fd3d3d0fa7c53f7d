"""Remove channels that are constant and Relus that never clamp.

    a channel that is 0         is removed, with the row of weights that makes it and the columns that read it
    one that is c, not 0        is removed likewise, and w * c goes into the bias of each node that reads it; where that node pads
                                with zeros the sum is another one at the border, and the channel stays
    a Relu that never clamps    is removed, when that is proven for all its channels

What is proven (from the weights and the range of the input) leaves the outputs what they were, to float32 rounding. What
was only observed on data is treated as 0 on request: then outputs change wherever such a channel would be positive.
`channel_groups.py` decides which channels are removed, `intervals/constants.py` which are constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.intervals.constants import constant_channels
from relu_deploy.graph.intervals.operands import Operands, constant_of
from relu_deploy.graph.intervals.ranges import bounds_of
from relu_deploy.graph.model import opset_of
from relu_deploy.graph.pruning.channel_groups import OUTPUT, ChannelMaps, ChannelReader, PruningDecision, decide
from relu_deploy.graph.pruning.channels import WEIGHTED, ChannelMap, bias_of, channel_map_of, channels_of
from relu_deploy.graph.relus import Relu, find_relus
from relu_deploy.graph.rewriting.pass_result import PassResult
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["KeptChannels", "PruningReport", "RemovedChannels", "prune_model"]

#: by node and position of the input, what it becomes
Operand = tuple["ir.Node", int]


@dataclass(frozen=True)
class RemovedChannels(JsonRecord):
    """Channels that a Conv, Gemm or MatMul no longer makes. ground: "proven" or "observed".

    zero, nonzero: how many of them were constant where they were read, by kind; varying: those that vary where they are made,
    and that nothing reads before they have become constant or meet weights of 0.
    """

    node: str
    channels: int
    zero: int
    nonzero: int
    varying: int
    ground: str


@dataclass(frozen=True)
class KeptChannels(JsonRecord):
    """Channels that are constant, or a Relu that never clamps, which were kept, and why."""

    node: str
    channels: int
    reason: str


@dataclass(frozen=True)
class PruningReport:
    """What `prune_model` removed. relus_removed: names of the nodes.

    channels_before, channels_after: that all Conv, ConvTranspose, Gemm and MatMul nodes make together.
    surviving: for each tensor that lost channels, by name, the old places of those that it still has: int64, increasing.
    is_exact: whether every bias that took up constants is the number that it has to be. Otherwise it was rounded to float32, and
    tensors are what they were but for that.
    """

    removed: tuple[RemovedChannels, ...]
    relus_removed: tuple[str, ...]
    kept: tuple[KeptChannels, ...]
    channels_before: int
    channels_after: int
    surviving: Mapping[str, Array]
    is_exact: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "removed": [removed.to_json() for removed in self.removed],
            "relus_removed": list(self.relus_removed),
            "kept": [kept.to_json() for kept in self.kept],
            "channels_before": self.channels_before,
            "channels_after": self.channels_after,
        }


def prune_model(
    model: ir.Model, input_ranges: Mapping[str, tuple[Any, Any]], observed: Mapping[str, Array] | None = None
) -> PassResult[PruningReport]:
    """Return a new model without the channels and Relus of `model` that never act, and a report of what was removed and what was not.

    model: float32, shapes inferred, BatchNormalizations folded or not. input_ranges: as for `bounds_of`; what is proven
    holds for inputs in them. observed: by Relu output, bool (C,), channels to take for 0 although that is not proven.
    Raises InputError when `observed` does not fit the model.
    """
    compacted = model.clone()
    bounds = bounds_of(compacted, input_ranges)
    opset = opset_of(compacted)
    channel_maps = {node: channel_map_of(node, opset) for node in compacted.graph}
    constants = constant_channels(compacted, channel_maps, bounds, observed or {})
    decision = decide(compacted, channel_maps, constants)
    before, removed, kept = _channels(compacted), tuple(_removed(decision)), [*_kept(decision)]
    surviving = {
        str(value.name): np.flatnonzero(~gone) for value in decision.places.values if (gone := decision.gone(value)).any()
    }
    never_clamp = [
        relu for relu in find_relus(compacted) if not relu.body and _never_clamps(relu, bounds, surviving.get(relu.output))
    ]
    is_exact = _shrink(compacted, channel_maps, decision)
    relus_removed, relus_kept = _bypass(compacted, never_clamp)
    _remove_unread_constants(compacted)
    report = PruningReport(removed, relus_removed, (*kept, *relus_kept), before, _channels(compacted), surviving, is_exact)
    return PassResult(compacted, bool(removed or relus_removed), report)


# ---------------------------------------------------------------- the report


def _channels(model: ir.Model) -> int:
    return sum(channels_of(node.outputs[0]) or 0 for node in model.graph if node.op_type in WEIGHTED)


def _makers(decision: PruningDecision) -> Iterator[tuple[str, Array]]:
    for value in decision.places.values:
        maker = value.producer()
        if maker is not None and maker.op_type in WEIGHTED:
            yield str(maker.name), decision.places.at(value)


def _removed(decision: PruningDecision) -> Iterator[RemovedChannels]:
    for name, at in _makers(decision):
        for ground in ("proven", "observed"):
            gone = at[decision.goes[at] & (decision.assumed[at] == (ground == "observed"))]
            if len(gone):
                nonzero = int(decision.nonzero[gone].sum())
                zero = int((decision.zero[gone] & ~decision.nonzero[gone]).sum())
                yield RemovedChannels(name, len(gone), zero, nonzero, len(gone) - zero - nonzero, ground)


def _kept(decision: PruningDecision) -> Iterator[KeptChannels]:
    for name, at in _makers(decision):
        reasons = Counter(decision.reasons[at[decision.constant[at] & ~decision.goes[at]]])
        yield from (KeptChannels(name, channels, reason) for reason, channels in reasons.items() if reason)


# ---------------------------------------------------------------- channels


def _shrink(model: ir.Model, channel_maps: ChannelMaps, decision: PruningDecision) -> bool:
    """Take the channels that go out of every constant, attribute and shape of `model`, in place; return whether none was rounded."""
    new: dict[Operand, Array] = {}
    for node, channel_map in channel_maps.items():
        if isinstance(channel_map, ChannelMap):
            made = decision.gone(node.outputs[0])
            cuts = [(*row, made) for row in channel_map.rows]
            if channel_map.columns is not None:
                cuts.append((*channel_map.columns, decision.gone(node.inputs[0])))
            for position, axis, gone in cuts:
                if gone.any():
                    _slice(new, (node, position), axis, gone)
            if made.any():
                _resize(new, node, channel_map, int((~made).sum()))
    exact = [_fold(new, reader, decision) for reader in decision.readers]
    _write(model, new)
    for value in decision.places.values:
        if (gone := decision.gone(value)).any():
            _narrow(value, int((~gone).sum()))
    return all(exact)


def _slice(new: dict[Operand, Array], operand: Operand, axis: int, gone: Array) -> None:
    node, position = operand
    array = new.get(operand, constant_of(node.inputs[position]))
    new[operand] = np.compress(~gone, np.asarray(array), axis)


def _resize(new: dict[Operand, Array], node: ir.Node, channel_map: ChannelMap, channels: int) -> None:
    """Let a depthwise Conv have fewer groups, and a Reshape make a smaller shape."""
    import onnx_ir as ir

    if node.op_type == "Conv" and channel_map.links:
        node.attributes["group"] = ir.AttrInt64("group", channels // channel_map.links[0].block)
    if channel_map.sizes is not None:
        sizes = np.array(constant_of(node.inputs[channel_map.sizes]))
        if sizes[1] > 0:
            sizes[1] = channels
            new[node, channel_map.sizes] = sizes


def _fold(new: dict[Operand, Array], reader: ChannelReader, decision: PruningDecision) -> bool:
    """Add what the constants that go contribute to the bias of the node that reads them: in float64, rounded once.

    Returns:
        Whether the rounding changed nothing.
    """
    import onnx_ir as ir

    node, values = reader.node, reader.constants.values
    folded = decision.gone(reader.source) & reader.uses & (values != 0)
    place = bias_of(node)
    if not folded.any() or place is None:
        return True
    operands = Operands(node, {}, 0)
    weights = np.asarray(operands.constant(1))
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not operands.attribute("transB", 0)):
        weights = weights.T
    columns = weights[~decision.gone(node.outputs[0])][:, folded].astype(np.float64)
    contribution = columns.reshape(len(columns), columns.shape[1], -1).sum(axis=2) @ values[folded]
    old = new.get(place, constant_of(place[0].inputs[place[1]]) if place[1] < len(place[0].inputs) else None)
    if node.op_type == "Gemm":
        contribution = contribution * float(operands.attribute("alpha", 1.0))
        beta = float(operands.attribute("beta", 1.0))
        if old is None or beta == 0:
            node.attributes["beta"], old = ir.AttrFloat32("beta", 1.0), None
        else:
            contribution = contribution / beta
    wide = contribution if old is None else old.astype(np.float64) + contribution
    new[place] = wide.astype(weights.dtype)
    return bool(np.array_equal(new[place], wide))


def _narrow(value: ir.Value, channels: int) -> None:
    import onnx_ir as ir

    if value.shape is not None:
        value.shape = ir.Shape([channels if axis == 1 else dim for axis, dim in enumerate(value.shape)])


def _write(model: ir.Model, new: Mapping[Operand, Array]) -> None:
    """Give nodes their new constants: under the old name where all that read it agree, else under one of their own."""
    import onnx_ir as ir

    owners: dict[ir.Value | None, list[Operand]] = {}
    for node, position in new:
        owners.setdefault(node.inputs[position] if position < len(node.inputs) else None, []).append((node, position))
    for value, operands in owners.items():
        first = new[operands[0]]
        is_one = value is not None and value.is_initializer() and not value.is_graph_output()
        if (
            value is not None
            and is_one
            and len(operands) == len(value.uses())
            and all(np.array_equal(new[o], first) for o in operands)
        ):
            value.const_value, value.shape = ir.tensor(first, name=value.name), ir.Shape(first.shape)
            continue
        for node, position in operands:
            name = f"{node.name}/bias" if value is None else f"{value.name}/{node.name}"
            if position >= len(node.inputs):
                node.resize_inputs(position + 1)
            node.replace_input_with(position, _initializer(model, name, new[node, position]))


def _initializer(model: ir.Model, name: str, array: Array) -> ir.Value:
    import onnx_ir as ir

    taken = {*model.graph.initializers, *(value.name for node in model.graph for value in node.outputs)}
    while name in taken:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


# ---------------------------------------------------------------- Relus and unread constants


def _never_clamps(relu: Relu, bounds: Mapping[str, tuple[Array, Array]], surviving: Array | None) -> bool:
    """Return whether every channel that is left comes out as it went in."""
    low, high = bounds.get(relu.input, (np.asarray(-np.inf), np.asarray(np.inf)))
    if surviving is not None and low.ndim:
        low, high = low[surviving], high[surviving]
    return bool((low >= 0).all() and (relu.upper is None or (high <= relu.upper).all()))


def _bypass(model: ir.Model, relus: list[Relu]) -> tuple[tuple[str, ...], list[KeptChannels]]:
    """Let the readers of each Relu read what it reads, in place, and return the names of those that went and what stayed."""
    made = {str(value.name): node for node in model.graph for value in node.outputs}
    removed, kept = [], []
    for relu in relus:
        node = made[relu.output]
        result = node.outputs[0]
        source = next(value for value in node.inputs if value is not None and constant_of(value) is None)
        if result.is_graph_output():
            if source.is_graph_output() or source.is_graph_input() or source.producer() is None:
                kept.append(KeptChannels(relu.node, channels_of(result) or 0, OUTPUT))
                continue
            name, result.name = result.name, f"{result.name}/removed"
            source.name = name
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        removed.append(relu.node)
    return tuple(removed), kept


def _remove_unread_constants(model: ir.Model) -> None:
    """Delete the constants that nothing reads any more."""
    for node in [node for node in model.graph if node.op_type == "Constant"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del model.graph.initializers[name]
