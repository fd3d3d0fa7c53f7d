"""Describe what an ONNX file records wrongly although runtimes accept it: loading repairs it, and people should know.

Each note is one sentence. Functions that repair something themselves return their own notes (see `load_model`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from relu_deploy.graph.loading.traversal import bodies_of
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.shapes.shape_inference import forget_shapes
from relu_deploy.graph.weights import to_proto_without_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    import onnx_ir as ir

__all__ = ["irregularities_of", "repair_lists", "stale_shapes_of"]

#: names that one note lists
LISTED = 3


def repair_lists(proto: onnx.ModelProto) -> list[str]:
    """Remove repeated initializers and import operator sets that nodes use, in place, as ONNX Runtime does. Return a note for each."""
    notes = []
    initializers = proto.graph.initializer
    last = {tensor.name: place for place, tensor in enumerate(initializers)}
    if len(last) < len(initializers):
        count = Counter(tensor.name for tensor in initializers)
        notes.append(
            f"initializers occur more than once, and the last counts: {_listed([name for name in last if count[name] > 1])}"
        )
        kept = [tensor for place, tensor in enumerate(initializers) if last[tensor.name] == place]
        del initializers[:]
        initializers.extend(kept)
    imported = {opset.domain for opset in proto.opset_import}
    versions = _versions_of_other_domains()
    used = [domain for domain in dict.fromkeys(_domains(proto.graph)) if domain in versions and domain not in imported]
    for domain in used if imported else ():
        proto.opset_import.add(domain=domain, version=versions[domain])
    if used:
        notes.append(f"these operator sets are used and not imported: {_listed(used)}")
    if imported and not imported & {"", "ai.onnx"}:
        # A graph of other operators alone need not import ONNX's own, and what is added to it needs them.
        proto.opset_import.add(domain="", version=_version_for(proto.ir_version))
    return notes


def _version_for(ir_version: int) -> int:
    """Return the latest version of ONNX's own operators that a file of this version of the format may import."""
    from onnx import helper

    versions = [
        version
        for (domain, version), least in helper.OP_SET_ID_VERSION_MAP.items()
        if domain == "ai.onnx" and least <= ir_version
    ]
    return max(versions, default=1)


def _versions_of_other_domains() -> dict[str, int]:
    """Return the version of each operator set besides ONNX's own that a model means which does not import it."""
    import onnx

    return {"com.microsoft": 1, "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}


def _domains(graph: onnx.GraphProto) -> Iterator[str]:
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            yield node.domain
            waiting += bodies_of(node)


def irregularities_of(proto: onnx.ModelProto) -> list[str]:
    """Return a note for each kind of irregularity in `proto`: repeated metadata, unsorted nodes, initializers that nothing reads."""
    notes = []
    keys = Counter(entry.key for entry in proto.metadata_props)
    if repeated := [key for key, count in keys.items() if count > 1]:
        notes.append(f"metadata keys occur more than once, and the last value counts: {_listed(repeated)}")
    made = {name for node in proto.graph.node for name in node.output}
    known: set[str] = set()
    for node in proto.graph.node:
        if any(name in made and name not in known for name in _reads(node)):
            notes.append("the nodes are not in topological order and were sorted")
            break
        known.update(node.output)
    read = {name for node in proto.graph.node for name in _reads(node)} | {value.name for value in proto.graph.output}
    if unused := [tensor.name for tensor in proto.graph.initializer if tensor.name not in read]:
        notes.append(f"no node reads these initializers, and they are left out of a bundle: {_listed(unused)}")
    return notes


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that `node` and the graphs inside it read or return, those that the graphs compute themselves included."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield from (name for name in current.input if name)
        for body in bodies_of(current):
            yield from (value.name for value in body.output)
            waiting += body.node


def stale_shapes_of(model: ir.Model) -> list[str]:
    """Return a note when a shape that `model` records contradicts the one that follows from its inputs."""
    proto = to_proto_without_weights(model)
    recorded = {value.name: _dims(value) for value in (*proto.graph.value_info, *proto.graph.output)}
    if not any(recorded.values()):
        return []
    forget_shapes(proto.graph)
    try:
        inferred = infer_with_values(proto)
    except Exception:  # a graph that inference does not accept is refused elsewhere, with its reason
        return []
    stale = []
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        old, new = recorded.get(value.name), _dims(value)
        if old is None or new is None:
            continue
        numbers = [pair for pair in zip(old, new, strict=False) if all(isinstance(size, int) for size in pair)]
        if len(old) != len(new) or any(first != second for first, second in numbers):
            stale.append(f"{value.name} is recorded as {_shape(old)} and computed as {_shape(new)}")
    return [f"recorded shapes contradict the graph and are not used: {_listed(stale)}"] if stale else []


def _dims(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Return the sizes of a tensor, a name for each that is not known; None without a shape."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]


def _shape(dims: list[int | str]) -> str:
    return "x".join(map(str, dims)) or "a scalar"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
