"""The regions of an engine that can be checked, and which Relus are seen thereby.

A region is what lies between tensors that the engine showed: the graph's nodes that make one of them from others of them.
Where every tensor that the layer reads was shown, it is that layer and nothing else: a fusion. Where one was not shown, it
reaches back to the tensors before, over the layers between.

    observed     the Relu's own output was shown
    inside       it is computed inside a fusion whose inputs and output were shown; checked at its output
    unobserved   neither, and why
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph import Relu, nodes_between
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.engine.dataflow import Shape, Wiring, map_to_onnx, match_captures, wire
from relu_deploy.verification.engine.layers import Captured, EngineLayer
from relu_deploy.verification.engine.tensor_format import Quantized, decode, quantized_by

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Coverage", "EngineTrace", "Region", "Shown", "build_trace", "coverage_of", "regions_of"]

OBSERVED, INSIDE, UNOBSERVED = "observed", "inside", "unobserved"


@dataclass(frozen=True)
class Shown:
    """A tensor of the graph that the engine showed. places: of the layers that wrote it, among all.

    value: of the graph's shape; codes where the graph has codes there, else numbers. quantized: what codes stand for, where the
    engine keeps it as codes.
    """

    tensor: str
    engine_tensor: str
    places: tuple[int, ...]
    value: Array = field(repr=False)
    quantized: Quantized | None = None

    def real(self, value: Array) -> Array:
        """Return `value` of this tensor as numbers in float64, rounded to codes where the engine keeps codes; other integers as they are."""
        if self.quantized is not None:
            return self.quantized.nearest(value) if value.dtype.kind == "f" else self.quantized.real(value)
        return value if value.dtype.kind in "iub" else value.astype(np.float64)


@dataclass(frozen=True)
class EngineTrace:
    """All that an engine showed. shown: by the graph's tensors. copies: of each of them, written again.

    hidden: why a write was not shown, by its place. unmatched: captured tensors that no layer of the list writes.
    """

    wiring: Wiring
    shown: Mapping[str, Shown]
    copies: Sequence[Shown]
    tensors: Mapping[int, str]
    hidden: Mapping[int, str]
    unmatched: tuple[str, ...]


def build_trace(
    model: ir.Model,
    shapes: Mapping[str, Shape],
    layers: Sequence[EngineLayer],
    captured: Sequence[Captured],
    outputs: Feeds,
) -> EngineTrace:
    """Return what the engine with these `layers` showed of the graph.

    shapes: of every tensor of the graph. outputs: of the engine, which are known whether or not they were captured.
    """
    wiring = wire(layers)
    paired, hidden = match_captures(wiring, captured)
    tensors, strange = map_to_onnx(model, shapes, wiring, paired)
    hidden |= strange
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    shown: dict[str, Shown] = {}
    copies: list[Shown] = []
    for place, one in sorted(paired.items()):
        if place not in tensors:
            continue
        write = wiring.writes[place]
        read = _read(one, wiring, place, values.get(tensors[place]), shapes[tensors[place]])
        if isinstance(read, str):
            hidden[place] = read
            continue
        seen = Shown(tensors[place], write.tensor.name, write.layers, *read)
        if wiring.layers[write.layer].is_copy:
            copies.append(seen)
        else:
            shown[seen.tensor] = seen
    written = {wiring.writes[place].tensor.name: place for place in tensors}
    for name, array in outputs.items():
        place = written.get(name, -1)
        layers_of = wiring.writes[place].layers if place >= 0 else (len(layers) - 1,)
        if place >= 0 and place not in paired and wiring.layers[layers_of[-1]].is_copy and name in shown:
            copies.append(Shown(name, name, layers_of, array))
        elif name not in shown and name in values:
            shown[name] = Shown(name, name, layers_of, array)
    listed = {write.tensor.name for write in wiring.writes}
    unmatched = tuple(dict.fromkeys(one.name for one in captured if one.name not in listed))
    return EngineTrace(wiring, shown, copies, tensors, hidden, unmatched)


def _read(
    one: Captured, wiring: Wiring, place: int, value: ir.Value | None, shape: Shape
) -> tuple[Array, Quantized | None] | str:
    """Return the tensor of the graph that `one` is, and what its codes stand for; or why it cannot be told."""
    array = decode(one, wiring.writes[place].tensor)
    if isinstance(array, str):
        return array
    array = array.reshape(shape)
    holds_codes = one.dtype in ("int8", "uint8", "float8")
    if value is None or value.dtype is None:
        return array, None
    in_graph = value.dtype.name.startswith(("INT8", "UINT8", "FLOAT8"))
    if in_graph != holds_codes and in_graph:
        return f"it is {one.dtype} in the engine and {value.dtype.name} in the graph"
    if not holds_codes:
        return array, None
    quantized, node = quantized_by(value), value.producer()
    if quantized is None and (not in_graph or (node is not None and node.op_type == "QuantizeLinear")):
        return f"it is kept as {one.dtype} and the graph does not say in one way what its codes stand for"
    return (array if in_graph or quantized is None else quantized.real(array)), quantized


@dataclass(frozen=True)
class Region:
    """The nodes that make `tensor` from the tensors `inputs`, all of them shown by the engine or fed to it.

    layer: that wrote it, or the last part of it. place: of that layer. missing: what the layer reads and did not show, with the reason of each; the
    region then reaches back further. is_copy: its layer only writes `tensor` again, and that is what is checked.
    """

    tensor: str
    engine_tensor: str
    layer: str
    place: int
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    missing: tuple[str, ...] = ()
    is_copy: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "engine_tensor": self.engine_tensor,
            "layer": self.layer,
            "nodes": list(self.nodes),
            "inputs": list(self.inputs),
            "missing": list(self.missing),
            "is_copy": self.is_copy,
        }


def regions_of(model: ir.Model, view: EngineTrace) -> list[Region]:
    """Return the regions that `view` lets one check, in the order in which the engine runs them."""
    inputs = frozenset(str(value.name) for value in model.graph.inputs)
    ends = {*view.shown, *inputs}
    regions = []
    for shown in view.shown.values():
        nodes = nodes_between(model, ends - {shown.tensor}, [shown.tensor])
        made = {value.name for node in nodes for value in node.outputs}
        read = dict.fromkeys(str(value.name) for node in nodes for value in node.inputs if value is not None)
        regions.append(
            Region(
                shown.tensor,
                shown.engine_tensor,
                view.wiring.layers[shown.places[-1]].name,
                shown.places[-1],
                tuple(str(node.name) for node in nodes),
                tuple(name for name in read if name in ends and name not in made),
                tuple(_missing(view, shown.places, inputs)),
            )
        )
    for copy in view.copies:
        place = copy.places[-1]
        if copy.tensor in ends:
            name = view.wiring.layers[place].name
            regions.append(Region(copy.tensor, copy.engine_tensor, name, place, (), (copy.tensor,), is_copy=True))
    return sorted(regions, key=lambda region: region.place)


def _missing(view: EngineTrace, places: Sequence[int], inputs: frozenset[str]) -> list[str]:
    wiring, missing = view.wiring, []
    reads = [
        match_captures
        for place in places
        for match_captures in zip(wiring.layers[place].inputs, wiring.reads[place], strict=True)
    ]
    for tensor, write in reads:
        origin = wiring.origin(write)
        if origin is None or view.tensors.get(origin) in view.shown or wiring.is_constant(origin, inputs):
            continue
        missing.append(f"{tensor.name}: {view.hidden.get(origin, 'it was not captured')}")
    return missing


@dataclass(frozen=True)
class Coverage:
    """How one Relu was seen. state: "observed", "inside" or "unobserved". at: the tensor it was checked at, "" for none.

    layer: the engine's layer that computes it, "" where none names it. reason: why it was not observed.
    """

    relu: Relu
    state: str
    layer: str
    at: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.relu.node,
            "index": self.relu.index,
            "scope": self.relu.scope,
            "kind": self.relu.kind,
            "state": self.state,
            "layer": self.layer,
            "at": self.at,
            "reason": self.reason,
        }


def coverage_of(relus: Sequence[Relu], view: EngineTrace, regions: Sequence[Region]) -> list[Coverage]:
    """Return how each of `relus` was seen."""
    named = {node: place for place, layer in reversed(list(enumerate(view.wiring.layers))) for node in layer.nodes}
    found = []
    for relu in relus:
        place = named.get(relu.node)
        layer = view.wiring.layers[place].name if place is not None else ""
        around = [region for region in regions if relu.node in region.nodes]
        if relu.output in view.shown:
            found.append(Coverage(relu, OBSERVED, layer, relu.output))
            continue
        fusion = next((region for region in around if not region.missing), None)
        if fusion is not None:
            found.append(Coverage(relu, INSIDE, layer or fusion.layer, fusion.tensor))
            continue
        reason = _why_unobserved(view, place)
        if around:
            reason = f"{reason}; checked only as part of the stretch that ends in {around[0].tensor}"
        found.append(Coverage(relu, UNOBSERVED, layer, around[0].tensor if around else "", reason))
    return found


def _why_unobserved(view: EngineTrace, place: int | None) -> str:
    if place is None:
        return "no layer of the engine names it"
    reasons = [
        f"{write.tensor.name}: {view.hidden[index]}"
        for index, write in enumerate(view.wiring.writes)
        if place in write.layers and index in view.hidden
    ]
    return "; ".join(reasons) or "what its layer reads was not shown"
