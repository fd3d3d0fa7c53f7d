"""Which tensor of the ONNX graph a tensor of an engine is.

Names of an engine's tensors are not unique: Myelin reuses its internal names once their last reader has run, and the parts of
a Concat are written into it by several layers. So a tensor is a write, and a read is of the last write before it.

A write is mapped to a tensor of the graph

    by its name, or a copy's, where the graph has a tensor of that name and shape
    by the nodes of its layer: the tensor that they make and that others read, where there is only one, or one of its shape
    by the tensor that it was copied from, where its layer only writes a tensor again

Where none of these decides, it is not mapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relu_deploy.verification.engine.layers import Captured, EngineLayer, EngineTensor
from relu_deploy.verification.engine.tensor_format import same_but_ones

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Dataflow", "Write", "map_to_onnx", "match_captures", "trace_dataflow"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Write:
    """A tensor as it is written once: by one layer, or in parts by several. layers: Their places in the engine's list."""

    tensor: EngineTensor
    layers: tuple[int, ...]

    @property
    def layer(self) -> int:
        """Return the place of the layer that completes it."""
        return self.layers[-1]


@dataclass(frozen=True)
class Dataflow:
    """The layers of an engine and the tensors between them.

    Attributes:
        reads: For each input of each layer the write that it reads, None for the engine's inputs and weights.
    """

    layers: tuple[EngineLayer, ...]
    writes: tuple[Write, ...]
    reads: tuple[tuple[int | None, ...], ...]

    def origin(self, write: int | None) -> int | None:
        """Return the write that `write` is a copy of, itself where its layer computes, None for a copy of an input or weight."""
        while write is not None and self.layers[self.writes[write].layer].is_copy:
            write = self.reads[self.writes[write].layer][0]
        return write

    def is_constant(self, write: int, inputs: frozenset[str]) -> bool:
        """Return whether `write` depends on weights only. inputs: Names of the engine's inputs."""
        layer = self.writes[write].layer
        pairs = zip(self.layers[layer].inputs, self.reads[layer], strict=True)
        return all(
            tensor.name not in inputs if source is None else source < write and self.is_constant(source, inputs)
            for tensor, source in pairs
        )


def trace_dataflow(layers: Sequence[EngineLayer]) -> Dataflow:
    """Return the tensors between `layers`, which are in the order in which they run."""
    writes: list[Write] = []
    reads: list[tuple[int | None, ...]] = []
    latest: dict[str, int] = {}
    read: set[int] = set()
    for place, layer in enumerate(layers):
        reads.append(tuple(latest.get(tensor.name) for tensor in layer.inputs))
        read.update(write for write in reads[-1] if write is not None)
        for tensor in layer.outputs:
            before = latest.get(tensor.name)
            if before is not None and before not in read and place not in writes[before].layers:
                # The first write has no reader: both wrote parts of one tensor.
                writes[before] = Write(tensor, (*writes[before].layers, place))
                continue
            latest[tensor.name] = len(writes)
            writes.append(Write(tensor, (place,)))
    return Dataflow(tuple(layers), tuple(writes), tuple(reads))


def match_captures(dataflow: Dataflow, captured: Sequence[Captured]) -> tuple[dict[int, Captured], dict[int, str]]:
    """Return the captured tensor of each write, and for every other write why there is none."""
    by_name: dict[str, list[Captured]] = {}
    for one in captured:
        by_name.setdefault(one.name, []).append(one)
    writes: dict[str, list[int]] = {}
    for place, write in enumerate(dataflow.writes):
        writes.setdefault(write.tensor.name, []).append(place)
    found: dict[int, Captured] = {}
    reasons: dict[int, str] = {}
    for name, places in writes.items():
        shown = by_name.get(name, [])
        if len(places) == 1 and shown:
            # One that is written in parts is captured after each of them: it is complete after the last.
            found[places[0]] = shown[-1]
        elif len(places) == len(shown):
            found |= dict(zip(places, shown, strict=True))
        else:
            many = f"the engine uses the name for {len(places)} tensors and {len(shown)} were captured"
            reasons |= dict.fromkeys(places, many if shown else "it was not captured")
    return found, reasons


def map_to_onnx(
    model: ir.Model, shapes: Mapping[str, Shape], dataflow: Dataflow, captured: Mapping[int, Captured]
) -> tuple[dict[int, str], dict[int, str]]:
    """Map the writes of an engine to tensors of the graph.

    Args:
        model: The graph.
        shapes: The shape of every tensor of the graph, at the inputs that were captured.
        dataflow: The engine.
        captured: The captured tensors, by write.

    Returns:
        The graph's tensor of each write, and for every other write why it is not mapped.
    """
    dims = {
        place: captured[place].shape if place in captured else write.tensor.dims for place, write in enumerate(dataflow.writes)
    }
    computed = [place for place, write in enumerate(dataflow.writes) if not dataflow.layers[write.layer].is_copy]
    known = _by_name(dataflow, dims, shapes)
    reasons: dict[int, str] = {}
    by_layer: dict[int, list[int]] = {}
    for place in computed:
        if place not in known:
            if len(dataflow.writes[place].layers) > 1:
                reasons[place] = "several layers write parts of it"
                continue
            by_layer.setdefault(dataflow.writes[place].layer, []).append(place)
    computing = Counter(node for layer in dataflow.layers for node in layer.nodes)
    for layer, places in by_layer.items():
        named = {known[place] for place in computed if place in known and dataflow.writes[place].layer == layer}
        results = [name for name in _results(model, dataflow.layers[layer].nodes, computing) if name not in named]
        for place in places:
            found = _tensor_of(place, places, results, dims, shapes)
            if isinstance(found, _NotMapped):
                reasons[place] = found.reason
            else:
                known[place] = found
    twice = {name for name, count in Counter(known.values()).items() if count > 1}
    for place in [place for place, name in known.items() if name in twice]:
        reasons[place] = f"the engine writes {known.pop(place)} more than once"
    for place, write in enumerate(dataflow.writes):
        if place not in known and dataflow.layers[write.layer].is_copy:
            origin, source = dataflow.origin(place), dataflow.layers[write.layer].inputs[0].name
            if origin in known:
                known[place] = known[origin]
            elif origin is None and source in shapes:
                known[place] = source
            else:
                reasons[place] = (
                    reasons.get(origin, "it is a copy of a weight") if origin is not None else "it is a copy of a weight"
                )
    return known, reasons


def _by_name(dataflow: Dataflow, dims: Mapping[int, Shape], shapes: Mapping[str, Shape]) -> dict[int, str]:
    """Return the graph's tensor of each write that computes, where it or a copy of it has the name and the shape of one."""
    named = {
        place: write.tensor.name
        for place, write in enumerate(dataflow.writes)
        if write.tensor.name in shapes and same_but_ones(dims[place], shapes[write.tensor.name])
    }
    known = {place: name for place, name in named.items() if dataflow.origin(place) == place}
    for place, name in named.items():
        origin = dataflow.origin(place)
        # An engine may write an output under an internal name and copy it to its buffer afterwards.
        if origin is not None and origin not in known and name not in known.values():
            known[origin] = name
    return known


@dataclass(frozen=True)
class _NotMapped:
    reason: str


def _tensor_of(
    place: int, places: Sequence[int], results: Sequence[str], dims: Mapping[int, Shape], shapes: Mapping[str, Shape]
) -> str | _NotMapped:
    """Return which of `results` the write at `place` is. places: The writes of its layer that were not mapped by name."""
    if not results:
        return _NotMapped("its layer names no node of the graph whose result others read")
    fitting = [name for name in results if name in shapes and same_but_ones(dims[place], shapes[name])]
    rivals = [other for other in places if dims[other] == dims[place]]
    if len(fitting) == 1 and len(rivals) == 1:
        return fitting[0]
    if not fitting:
        made = ", ".join(f"{name} {shapes.get(name, '?')}" for name in results[:3])
        return _NotMapped(f"no tensor that its nodes make has its shape {dims[place]}: {made}")
    return _NotMapped(f"{len(fitting)} tensors that its nodes make have its shape: {', '.join(fitting[:3])}")


def _results(model: ir.Model, nodes: Sequence[str], computing: Mapping[str, int]) -> list[str]:
    """Return the tensors that a layer's nodes make and that nodes of other layers read, or that are outputs of the graph.

    A node that several layers compute, each for itself (a DequantizeLinear), has no result that others read.
    computing: How many layers name each node.
    """
    inside = set(nodes)
    return [
        str(value.name)
        for node in model.graph
        if node.name in inside and computing[str(node.name)] == 1
        for value in node.outputs
        if value.is_graph_output()
        or any(reader.name not in inside or computing[str(reader.name)] > 1 for reader in value.consumers())
    ]
