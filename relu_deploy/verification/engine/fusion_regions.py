"""The regions of an engine that can be checked, and how each Relu is covered by them.

A region is the part of the graph between tensors that the engine showed: the nodes that make one of them from others of them.
Where every tensor that the layer reads was shown, it is that layer and nothing else: a fusion. Where one was not shown, it
extends back to the tensors before, over the layers between.

    observed     the Relu's own output was shown
    inside       it is computed inside a fusion whose inputs and output were shown; checked at its output
    unobserved   neither, and why
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph import Relu
from relu_deploy.graph.subgraph import Producers
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.engine.dataflow import Dataflow, Shape, map_to_onnx, match_captures, trace_dataflow
from relu_deploy.verification.engine.layers import Captured, EngineLayer
from relu_deploy.verification.engine.tensor_format import Quantized, decode, quantized_by

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Coverage", "EngineTrace", "Region", "Shown", "build_trace", "coverage_of", "regions_of"]

OBSERVED, INSIDE, UNOBSERVED = "observed", "inside", "unobserved"


@dataclass(frozen=True)
class Shown:
    """A tensor of the graph that the engine showed.

    Attributes:
        places: The layers that wrote it.
        value: In the shape of the graph; codes where the graph has codes, else numbers.
        quantized: The scale of the codes, where the engine keeps it as codes.
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
    """Everything that an engine showed.

    Attributes:
        shown: By the tensors of the graph.
        copies: Of each of them, written again.
        tensors: The graph's tensor by the place of its write.
        hidden: Why a write was not shown, by its place.
        unmatched: Captured tensors that no layer writes.
    """

    dataflow: Dataflow
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
    """Return what an engine showed of the graph.

    Args:
        model: The graph.
        shapes: The shape of every tensor of the graph.
        layers: The engine's layers.
        captured: The tensors that it showed while it ran.
        outputs: Its outputs, which are known whether or not they were captured.
    """
    dataflow = trace_dataflow(layers)
    paired, hidden = match_captures(dataflow, captured)
    tensors, not_mapped = map_to_onnx(model, shapes, dataflow, paired)
    hidden |= not_mapped
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    shown: dict[str, Shown] = {}
    copies: list[Shown] = []
    for place, one in sorted(paired.items()):
        if place not in tensors:
            continue
        write = dataflow.writes[place]
        read = _read(one, dataflow, place, values.get(tensors[place]), shapes[tensors[place]])
        if isinstance(read, str):
            hidden[place] = read
            continue
        tensor = Shown(tensors[place], write.tensor.name, write.layers, *read)
        if dataflow.layers[write.layer].is_copy:
            copies.append(tensor)
        else:
            shown[tensor.tensor] = tensor
    written = {dataflow.writes[place].tensor.name: place for place in tensors}
    for name, array in outputs.items():
        place = written.get(name, -1)
        layers_of = dataflow.writes[place].layers if place >= 0 else (len(layers) - 1,)
        if place >= 0 and place not in paired and dataflow.layers[layers_of[-1]].is_copy and name in shown:
            copies.append(Shown(name, name, layers_of, array))
        elif name not in shown and name in values:
            shown[name] = Shown(name, name, layers_of, array)
    listed = {write.tensor.name for write in dataflow.writes}
    unmatched = tuple(dict.fromkeys(one.name for one in captured if one.name not in listed))
    return EngineTrace(dataflow, shown, copies, tensors, hidden, unmatched)


def _read(
    one: Captured, dataflow: Dataflow, place: int, value: ir.Value | None, shape: Shape
) -> tuple[Array, Quantized | None] | str:
    """Return the tensor of the graph that `one` is, and the scale of its codes; or why it cannot be decoded."""
    array = decode(one, dataflow.writes[place].tensor)
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
        return f"it is kept as {one.dtype} and the graph does not give one scale for its codes"
    return (array if in_graph or quantized is None else quantized.real(array)), quantized


@dataclass(frozen=True)
class Region:
    """The nodes that make `tensor` from the tensors `inputs`, all of them shown by the engine or fed to it.

    Attributes:
        layer: The one that wrote it, or the last part of it.
        place: Of that layer.
        missing: The tensors that the layer reads and that were not shown, each with the reason; the region then extends back
            further.
        is_copy: Its layer only writes `tensor` again, and that copy is checked.
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


def regions_of(model: ir.Model, trace: EngineTrace) -> list[Region]:
    """Return the regions that can be checked, in the order in which the engine runs them."""
    inputs = frozenset(str(value.name) for value in model.graph.inputs)
    ends = {*trace.shown, *inputs}
    regions = []
    producers = Producers(model)
    for shown in trace.shown.values():
        nodes = producers.nodes_between(ends, [shown.tensor])
        made = {value.name for node in nodes for value in node.outputs}
        read = dict.fromkeys(str(value.name) for node in nodes for value in node.inputs if value is not None)
        regions.append(
            Region(
                shown.tensor,
                shown.engine_tensor,
                trace.dataflow.layers[shown.places[-1]].name,
                shown.places[-1],
                tuple(str(node.name) for node in nodes),
                tuple(name for name in read if name in ends and name not in made),
                tuple(_missing(trace, shown.places, inputs)),
            )
        )
    for copy in trace.copies:
        place = copy.places[-1]
        if copy.tensor in ends:
            name = trace.dataflow.layers[place].name
            regions.append(Region(copy.tensor, copy.engine_tensor, name, place, (), (copy.tensor,), is_copy=True))
    return sorted(regions, key=lambda region: region.place)


def _missing(trace: EngineTrace, places: Sequence[int], inputs: frozenset[str]) -> list[str]:
    dataflow, missing = trace.dataflow, []
    reads = [pair for place in places for pair in zip(dataflow.layers[place].inputs, dataflow.reads[place], strict=True)]
    for tensor, write in reads:
        origin = dataflow.origin(write)
        if origin is None or trace.tensors.get(origin) in trace.shown or dataflow.is_constant(origin, inputs):
            continue
        missing.append(f"{tensor.name}: {trace.hidden.get(origin, 'it was not captured')}")
    return missing


@dataclass(frozen=True)
class Coverage:
    """How one Relu is covered.

    Attributes:
        state: "observed", "inside" or "unobserved".
        layer: The layer of the engine that computes it, "" where none names it.
        at: The tensor that it was checked at, "" for none.
        reason: Why it was not observed.
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


def coverage_of(relus: Sequence[Relu], trace: EngineTrace, regions: Sequence[Region]) -> list[Coverage]:
    """Return how each of `relus` is covered."""
    named = {node: place for place, layer in reversed(list(enumerate(trace.dataflow.layers))) for node in layer.nodes}
    found = []
    for relu in relus:
        place = named.get(relu.node)
        layer = trace.dataflow.layers[place].name if place is not None else ""
        around = [region for region in regions if relu.node in region.nodes]
        if relu.output in trace.shown:
            found.append(Coverage(relu, OBSERVED, layer, relu.output))
            continue
        fusion = next((region for region in around if not region.missing), None)
        if fusion is not None:
            found.append(Coverage(relu, INSIDE, layer or fusion.layer, fusion.tensor))
            continue
        reason = _unobserved_reason(trace, place)
        if around:
            reason = f"{reason}; checked only as part of the region that ends in {around[0].tensor}"
        found.append(Coverage(relu, UNOBSERVED, layer, around[0].tensor if around else "", reason))
    return found


def _unobserved_reason(trace: EngineTrace, place: int | None) -> str:
    if place is None:
        return "no layer of the engine names it"
    reasons = [
        f"{write.tensor.name}: {trace.hidden[index]}"
        for index, write in enumerate(trace.dataflow.writes)
        if place in write.layers and index in trace.hidden
    ]
    return "; ".join(reasons) or "what its layer reads was not shown"
