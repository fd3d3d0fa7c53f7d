"""Hide the nodes from onnx's data propagation that it would follow through long vectors, with the types of their results.

Whether a vector is long may depend on values: each pass of shape inference settles the types up to the next node that is hidden.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.loading.structure import MAX_RANK
from relu_deploy.graph.loading.traversal import bodies_of

if TYPE_CHECKING:
    import onnx

    Scope = ChainMap[str, onnx.TypeProto]
    Message = TypeVar("Message", onnx.NodeProto, onnx.TypeProto, onnx.ValueInfoProto)

__all__ = ["FOLLOWING", "HiddenNodes"]

#: operators that hold each vector that they read element by element
FOLLOWING = frozenset(["Cast", "Concat", "Gather", "MeanVarianceNormalization", "Size", "Slice", "Squeeze", "Unsqueeze"])
#: operators whose inferred shapes depend on values that are followed
READERS = frozenset(["AffineGrid", "CenterCropPad", "ConstantOfShape", "Expand", "Reshape", "Resize", "Upsample"])
#: operators that compute values which are followed
CARRYING = FOLLOWING | {"Add", "Mul", "Shape", "Sub"}
#: constants of more bytes are no operand that a shape depends on
LARGEST_OPERAND = 8192


class HiddenNodes:
    """The nodes of a model that are hidden from data propagation.

    Args:
        proto: The model. Nodes before their operands are not hidden; onnx does not follow them either.
        suspects: The nodes that may read a long vector.
        calls: Domain and name of the functions that contain such nodes. Their calls are always hidden.
    """

    def __init__(self, proto: onnx.ModelProto, suspects: list[onnx.NodeProto], calls: set[tuple[str, str]]) -> None:
        # The list keeps the nodes alive, whose identities are the keys.
        self._proto, self._nodes, self._calls = proto, suspects, calls
        self._suspects = {id(node) for node in suspects}
        self._is_first = True
        #: tensors whose types may become more exact in the next pass, and ones whose types are more exact than in the last one
        self._open: set[str] = set()
        self._changed: set[str] = set()
        #: tensors of which the next pass may find values that the last one did not
        self._fresh: set[str] = set()
        #: the types of the results of each node hidden in the last pass and in the next
        self._last: dict[int, list[onnx.TypeProto]] = {}
        self._found: dict[int, list[onnx.TypeProto]] = {}
        #: the element types of the hidden nodes that are replaced by a cast
        self._casts: dict[int, int] = {}
        self._places: list[tuple[onnx.GraphProto, onnx.NodeProto]] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._versions = {opset.domain or "": opset.version for opset in proto.opset_import}

    def update(self, inferred: onnx.ModelProto) -> bool:
        """Choose the nodes to hide from the types in `inferred`, the result of the last pass. Return whether that differs."""
        self._last, self._found, self._places = self._found, {}, []
        self._open, self._changed, self._fresh, self._casts = set(), set(), set(), {}
        self._visit(self._proto.graph, inferred.graph, ChainMap())
        is_new = self._is_first or self._found != self._last
        self._is_first = False
        return is_new

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the chosen nodes for the time of the block."""
        import onnx

        restore: list[Callable[[], None]] = []
        records: dict[int, dict[str, onnx.ValueInfoProto]] = {}
        try:
            for graph, node in self._places:
                if id(graph) not in records:
                    count = len(graph.value_info)
                    restore.append(partial(_truncate, graph, count))
                    records[id(graph)] = {value.name: value for value in (*graph.value_info, *graph.output)}
                restore.append(partial(node.CopyFrom, _copy(node)))
                if id(node) in self._casts:
                    # The result is as large as the indices: so its dimensions have the same symbols.
                    to = onnx.helper.make_attribute("to", self._casts[id(node)])
                    node.CopyFrom(onnx.NodeProto(op_type="Cast", input=node.input[1:], output=node.output, attribute=[to]))
                    continue
                for name, kind in zip(node.output, self._found[id(node)], strict=True):
                    if name and kind.WhichOneof("value") is not None:
                        restore += _record(graph, records[id(graph)], name, kind)
                if (node.domain, node.op_type) in self._calls:
                    node.op_type = "UnfollowedCall"
                else:
                    # An identity of the result itself has the type that is recorded for it.
                    node.op_type, node.input[:] = "Identity", node.output
            yield
        finally:
            for each in reversed(restore):
                each()

    def _visit(self, graph: onnx.GraphProto, inferred: onnx.GraphProto, outer: Scope) -> None:
        """Choose nodes of `graph` and of the graphs inside it.

        Args:
            inferred: The same graph after the last pass.
            outer: The types of the tensors of the graphs around it.
        """
        types = outer.new_child({value.name: value.type for value in (*inferred.input, *inferred.value_info, *inferred.output)})
        for tensor in graph.initializer:
            if tensor.name not in types.maps[0]:
                types[tensor.name] = _type_of(tensor)
            self._keep(tensor.name, tensor)
        for node, twin in zip(graph.node, inferred.node, strict=True):
            self._keep_constant(node)
            is_open = any(name in self._open for name in node.input)
            for body, twin_body in zip(bodies_of(node), bodies_of(twin), strict=True):
                if self._is_first or is_open or any(name in self._changed for name in node.input):
                    self._open.update(value.name for value in twin_body.input if not _is_exact(value.type))
                self._visit(body, twin_body, types)
                is_open |= self._is_first or any(value.name in self._open or value.name in self._changed for value in body.output)
            is_suspect = id(node) in self._suspects
            is_open = self._settle(node, types, is_open)
            if is_open:
                self._open.update(name for name in node.output if name and not _is_exact(types.get(name)))
            reads_long = is_suspect and any(_is_long(types.get(name), name in self._open) for name in node.input if name)
            is_hidden = reads_long or (bool(self._calls) and (node.domain, node.op_type) in self._calls)
            if not is_hidden and (id(node) in self._last or self._is_fresh(node)):
                self._fresh.update(name for name in node.output if name)
            if is_hidden:
                self._found[id(node)] = [_copy(types[name]) if name in types else _no_type() for name in node.output]
                self._places.append((graph, node))
                if node.op_type == "Gather" and self._is_sized_by_indices(node, types):
                    self._casts[id(node)] = types[node.output[0]].tensor_type.elem_type
                    self._found[id(node)] = []

    def _is_sized_by_indices(self, node: onnx.NodeProto, types: Scope) -> bool:
        """Return whether a Gather from a vector has indices of a known rank and unknown size, whose values nothing follows."""
        if len(node.input) != 2 or self._is_first or not all(name in types for name in (*node.input, node.output[0])):
            return False
        data, indices = types[node.input[0]], types[node.input[1]]
        is_vector = data.tensor_type.HasField("shape") and len(data.tensor_type.shape.dim) == 1
        is_sized = indices.tensor_type.HasField("shape") and not _is_exact(indices)
        return is_vector and is_sized and not _is_long(indices, node.input[1] in self._open)

    def _settle(self, node: onnx.NodeProto, types: Scope, is_open: bool) -> bool:
        """Return whether the types of the outputs of `node` are open. Add the ones to `types` that changed since the last pass."""
        needs_pass = node.op_type in READERS or not is_standard(node)
        if self._is_first or is_open:
            return is_open or needs_pass
        if needs_pass and any(name in self._fresh for name in node.input):
            return True
        is_changed = any(name in self._changed for name in node.input)
        if not (is_changed or id(node) in self._last) or all(_is_exact(types.get(name)) for name in node.output if name):
            return False
        found = {} if needs_pass or any(bodies_of(node)) else self._infer(node, types)
        for name, kind in found.items():
            merged = _merged(types.get(name), kind)
            if merged != types.get(name):
                self._changed.add(name)
                types[name] = merged
        return is_changed and not found

    def _is_fresh(self, node: onnx.NodeProto) -> bool:
        """Return whether the next pass may find values of `node` that the last one did not."""
        if node.op_type not in CARRYING and is_standard(node) and not any(bodies_of(node)):
            return False
        return any(name in self._fresh or name in self._changed or name in self._open for name in node.input)

    def _keep_constant(self, node: onnx.NodeProto) -> None:
        import onnx

        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                self._keep(node.output[0], attribute.t)
            elif attribute.name in ("value_int", "value_ints"):
                ints = attribute.ints if attribute.name == "value_ints" else [attribute.i]
                dims = [len(ints)] if attribute.name == "value_ints" else []
                self._keep(node.output[0], onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=dims, int64_data=ints))

    def _keep(self, name: str, tensor: onnx.TensorProto) -> None:
        if tensor.ByteSize() <= LARGEST_OPERAND:
            self._constants[name] = tensor

    def _infer(self, node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
        """Return the types of the outputs of `node` as its operands give them, without their values."""
        import onnx

        if node.op_type == "MeanVarianceNormalization":  # a function of others, which has no inference of its own
            return {node.output[0]: types[node.input[0]]} if node.input[0] in types else {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions.get("", self._versions.get("ai.onnx", 1)), "")
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._versions.items()]
            operands = {name: types[name] for name in node.input if name}
            data = {name: self._constants[name] for name in node.input if name in self._constants}
            return onnx.shape_inference.infer_node_outputs(schema, node, operands, data, opset_imports=opsets)
        except Exception:  # what cannot be inferred alone keeps the type that it has
            return {}


def _record(
    graph: onnx.GraphProto, records: dict[str, onnx.ValueInfoProto], name: str, kind: onnx.TypeProto
) -> list[Callable[[], None]]:
    """Record the type of a tensor, and return what restores the one that was recorded."""
    value = records.get(name)
    if value is None:
        records[name] = value = graph.value_info.add(name=name)
        value.type.CopyFrom(kind)
        return []
    old = _copy(value)
    value.type.CopyFrom(kind)
    return [partial(value.CopyFrom, old)]


def _truncate(graph: onnx.GraphProto, count: int) -> None:
    del graph.value_info[count:]


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _no_type() -> onnx.TypeProto:
    import onnx

    return onnx.TypeProto()


def _type_of(tensor: onnx.TensorProto) -> onnx.TypeProto:
    import onnx

    return onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def _merged(old: onnx.TypeProto | None, new: onnx.TypeProto) -> onnx.TypeProto:
    """Return `new` with the symbols of `old` for the dimensions that it leaves open."""
    if old is None or len(old.tensor_type.shape.dim) != len(new.tensor_type.shape.dim):
        return new
    for before, dim in zip(old.tensor_type.shape.dim, new.tensor_type.shape.dim, strict=True):
        if not dim.HasField("dim_value"):
            dim.CopyFrom(before)
    return new


def _is_exact(kind: onnx.TypeProto | None) -> bool:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)


def _is_long(kind: onnx.TypeProto | None, is_open: bool) -> bool:
    """Return whether a tensor is a vector longer than a shape, or may become one where its type is still open."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return is_open
    dims = kind.tensor_type.shape.dim
    if len(dims) != 1:
        return False
    return dims[0].dim_value > MAX_RANK if dims[0].HasField("dim_value") else is_open
