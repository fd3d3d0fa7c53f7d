"""Divide a graph into segments that end in Relus, and count the cost of each.

A node belongs to the first Relu, in the graph's order, that depends on it. Nodes that no Relu depends on are the last segment.
Each node is in exactly one segment; a residual Add and the convolution of its shortcut are in the segment of the Relu behind
the Add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relu_deploy.graph.cost import sized_graph
from relu_deploy.graph.relus import Relu, find_relus
from relu_deploy.graph.subgraph import Producers

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Segment", "SegmentCost", "count_segment_costs", "divide_at_relus", "divide_like"]

#: types of nodes that hold values and compute none
CONSTANT = ("Constant", "ConstantOfShape")


@dataclass(frozen=True)
class Segment:
    """A part of a graph.

    Attributes:
        relu: The Relu that it ends in, None for the nodes behind the last one.
        nodes: Names of its nodes, in the graph's order.
    """

    relu: Relu | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class SegmentCost:
    """The cost of one run of a segment.

    Attributes:
        flops: Floating-point operations, None if a size is not known.
        bytes: Bytes that a single kernel would move: the tensors and weights that the segment reads, and the tensors that other
            segments or the outputs of the graph need from it. None if a size is not known.
    """

    flops: int | None
    bytes: int | None


def divide_at_relus(model: ir.Model) -> list[Segment]:
    """Return the segments of `model` in the order of their Relus. Relus inside bodies end no segment."""
    segments: list[Segment] = []
    producers = Producers(model)
    ends: set[str] = set()
    taken: set[str] = set()
    for relu in find_relus(model):
        if relu.body:
            continue
        nodes = [str(node.name) for node in producers.nodes_between(ends, [relu.output])]
        segments.append(Segment(relu, tuple(name for name in nodes if name not in taken)))
        taken.update(nodes)
        ends.add(relu.output)
    rest = tuple(str(node.name) for node in model.graph if node.name not in taken and node.op_type not in CONSTANT)
    return [*segments, Segment(None, rest)] if rest or not segments else segments


def divide_like(model: ir.Model, segments: Sequence[Segment]) -> list[Segment]:
    """Return `segments`, which are those of another graph, with the nodes of `model`.

    Nodes are matched by name. Of the nodes that the other graph does not have, a QuantizeLinear is in the segment of the node
    whose result it quantizes, as runtimes compute it; any other is in the segment of the first node that reads its results, or
    behind the last Relu if none does.
    """
    index_of = {name: index for index, segment in enumerate(segments) for name in segment.nodes}
    added = [node for node in model.graph if node.name not in index_of]
    for node in added:
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        if source is not None and source.name in index_of:
            index_of[str(node.name)] = index_of[str(source.name)]
    for node in reversed(added):
        if node.name not in index_of:
            readers = [reader for value in node.outputs for reader in value.consumers() if reader.name in index_of]
            index_of[str(node.name)] = min((index_of[str(reader.name)] for reader in readers), default=len(segments) - 1)
    members: list[list[str]] = [[] for _ in segments]
    for node in model.graph:
        members[index_of[str(node.name)]].append(str(node.name))
    return [Segment(segment.relu, tuple(nodes)) for segment, nodes in zip(segments, members, strict=True)]


def count_segment_costs(model: ir.Model, segments: Sequence[Segment], batch: int = 1) -> list[SegmentCost]:
    """Return the cost of each segment of `model` in a run of `batch` rows."""
    sized, counter = sized_graph(model, batch)
    nodes = {str(node.name): node for node in sized.graph}
    segment_of = {name: index for index, segment in enumerate(segments) for name in segment.nodes}
    costs = []
    for index, segment in enumerate(segments):
        counter.unknown.clear()
        mine = [nodes[name] for name in segment.nodes]
        flops = sum(counter.node(node)[0] for node in mine)
        if counter.unknown:
            costs.append(SegmentCost(None, None))
        else:
            costs.append(SegmentCost(flops, sum(counter.nbytes(value) for value in _crossing(mine, index, segment_of))))
    return costs


def _crossing(nodes: Sequence[ir.Node], index: int, segment_of: Mapping[str, int]) -> list[ir.Value]:
    """Return the tensors that a segment reads from elsewhere, its weights included, and those that are needed elsewhere."""
    read: dict[int, ir.Value] = {}
    written = []
    for node in nodes:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if value is None:
                continue
            if value.const_value is not None or producer is None or segment_of.get(str(producer.name)) != index:
                read[id(value)] = value
        for value in node.outputs:
            elsewhere = any(segment_of.get(str(reader.name)) != index for reader in value.consumers())
            if elsewhere or value.is_graph_output():
                written.append(value)
    return [*read.values(), *written]
