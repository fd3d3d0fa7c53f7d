"""Which tensor of the ONNX graph a tensor of an engine is.

Names of an engine's tensors are not unique: Myelin uses its own again once nobody reads them any more, and a Concat's parts
are written into it by several layers. So a tensor is a write, and a read is of the last write before it.

A write is told what it is

    by its name, or a copy's, where the graph has a tensor of that name and shape
    by the nodes of its layer: the tensor that they make and that others read, where there is only one, or one of its shape
    by what it was copied from, where its layer only writes a tensor again

and where none of these decides, it is not told at all.
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

__all__ = ["Wiring", "Write", "map_to_onnx", "match_captures", "wire"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Write:
    """A tensor as it is written once: by one layer, or in parts by several. layers: their places in the engine's list."""

    tensor: EngineTensor
    layers: tuple[int, ...]

    @property
    def layer(self) -> int:
        """Return the place of the layer after which it is whole."""
        return self.layers[-1]


@dataclass(frozen=True)
class Wiring:
    """An engine's layers and what flows between them. reads: for each layer's inputs the write, None for inputs and weights."""

    layers: tuple[EngineLayer, ...]
    writes: tuple[Write, ...]
    reads: tuple[tuple[int | None, ...], ...]

    def origin(self, write: int | None) -> int | None:
        """Return the write that `write` is a copy of, itself where its layer computes, None for a copy of an input or weight."""
        while write is not None and self.layers[self.writes[write].layer].is_copy:
            write = self.reads[self.writes[write].layer][0]
        return write

    def is_constant(self, write: int, inputs: frozenset[str]) -> bool:
        """Return whether nothing but weights goes into `write`. inputs: the engine's own."""
        layer = self.writes[write].layer
        pairs = zip(self.layers[layer].inputs, self.reads[layer], strict=True)
        return all(
            tensor.name not in inputs if source is None else source < write and self.is_constant(source, inputs)
            for tensor, source in pairs
        )


def wire(layers: Sequence[EngineLayer]) -> Wiring:
    """Return what flows between `layers`, which stand in the order in which they run."""
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
                # Nobody read what was written there before: both wrote parts of one tensor.
                writes[before] = Write(tensor, (*writes[before].layers, place))
                continue
            latest[tensor.name] = len(writes)
            writes.append(Write(tensor, (place,)))
    return Wiring(tuple(layers), tuple(writes), tuple(reads))


def match_captures(wiring: Wiring, captured: Sequence[Captured]) -> tuple[dict[int, Captured], dict[int, str]]:
    """Return what was captured of each write, and for every other write why there is nothing."""
    by_name: dict[str, list[Captured]] = {}
    for one in captured:
        by_name.setdefault(one.name, []).append(one)
    writes: dict[str, list[int]] = {}
    for place, write in enumerate(wiring.writes):
        writes.setdefault(write.tensor.name, []).append(place)
    found: dict[int, Captured] = {}
    reasons: dict[int, str] = {}
    for name, places in writes.items():
        shown = by_name.get(name, [])
        if len(places) == 1 and shown:
            # One that is written in parts is shown after each of them: it is whole after the last.
            found[places[0]] = shown[-1]
        elif len(places) == len(shown):
            found |= dict(zip(places, shown, strict=True))
        else:
            many = f"the engine uses the name for {len(places)} tensors and {len(shown)} were captured"
            reasons |= dict.fromkeys(places, many if shown else "it was not captured")
    return found, reasons


def map_to_onnx(
    model: ir.Model, shapes: Mapping[str, Shape], wiring: Wiring, captured: Mapping[int, Captured]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the graph's tensor that each write is, and for every other write why it is not told.

    shapes: of every tensor of the graph, at the feeds that were captured.
    """
    dims = {place: captured[place].shape if place in captured else write.tensor.dims for place, write in enumerate(wiring.writes)}
    computed = [place for place, write in enumerate(wiring.writes) if not wiring.layers[write.layer].is_copy]
    known = _by_name(wiring, dims, shapes)
    reasons: dict[int, str] = {}
    by_layer: dict[int, list[int]] = {}
    for place in computed:
        if place not in known:
            if len(wiring.writes[place].layers) > 1:
                reasons[place] = "several layers write parts of it"
                continue
            by_layer.setdefault(wiring.writes[place].layer, []).append(place)
    computing = Counter(node for layer in wiring.layers for node in layer.nodes)
    for layer, places in by_layer.items():
        named = {known[place] for place in computed if place in known and wiring.writes[place].layer == layer}
        results = [name for name in _results(model, wiring.layers[layer].nodes, computing) if name not in named]
        for place in places:
            answer = _chosen(place, places, results, dims, shapes)
            if isinstance(answer, list):
                reasons[place] = answer[0]
            else:
                known[place] = answer
    twice = {name for name, count in Counter(known.values()).items() if count > 1}
    for place in [place for place, name in known.items() if name in twice]:
        reasons[place] = f"the engine writes {known.pop(place)} more than once"
    for place, write in enumerate(wiring.writes):
        if place not in known and wiring.layers[write.layer].is_copy:
            origin, source = wiring.origin(place), wiring.layers[write.layer].inputs[0].name
            if origin in known:
                known[place] = known[origin]
            elif origin is None and source in shapes:
                known[place] = source
            else:
                reasons[place] = (
                    reasons.get(origin, "it is a copy of a weight") if origin is not None else "it is a copy of a weight"
                )
    return known, reasons


def _by_name(wiring: Wiring, dims: Mapping[int, Shape], shapes: Mapping[str, Shape]) -> dict[int, str]:
    """Return the graph's tensor of each write that computes, where it or a copy of it has the name and the shape of one."""
    named = {
        place: write.tensor.name
        for place, write in enumerate(wiring.writes)
        if write.tensor.name in shapes and same_but_ones(dims[place], shapes[write.tensor.name])
    }
    known = {place: name for place, name in named.items() if wiring.origin(place) == place}
    for place, name in named.items():
        origin = wiring.origin(place)
        # An engine may write an output under a name of its own and only then copy it to where it is wanted.
        if origin is not None and origin not in known and name not in known.values():
            known[origin] = name
    return known


def _chosen(
    place: int, places: Sequence[int], results: Sequence[str], dims: Mapping[int, Shape], shapes: Mapping[str, Shape]
) -> str | list[str]:
    """Return which of `results` the write at `place` is, or in a list why that is not told. places: of its layer, not told by name."""
    if not results:
        return ["its layer names no node of the graph whose result others read"]
    fitting = [name for name in results if name in shapes and same_but_ones(dims[place], shapes[name])]
    rivals = [other for other in places if dims[other] == dims[place]]
    if len(fitting) == 1 and len(rivals) == 1:
        return fitting[0]
    if not fitting:
        made = ", ".join(f"{name} {shapes.get(name, '?')}" for name in results[:3])
        return [f"no tensor that its nodes make has its shape {dims[place]}: {made}"]
    return [f"{len(fitting)} tensors that its nodes make have its shape: {', '.join(fitting[:3])}"]


def _results(model: ir.Model, nodes: Sequence[str], computing: Mapping[str, int]) -> list[str]:
    """Return the tensors that a layer's nodes make and that nodes of other layers read, or that are outputs of the graph.

    What several layers compute each for itself (a DequantizeLinear) is handed to nobody.
    computing: how many layers name each node.
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
