"""Check the structure of an ONNX file before anything else reads it.

The checks take linear time and do not recurse, so that a hostile file costs no more than a valid one of its size:

    graphs      have outputs, and nest at most `MAX_DEPTH` deep
    links       each tensor that is read exists, each is computed once, no node depends on itself
    nodes       have an operator type, as many inputs and outputs as the operator takes, its required attributes,
                attributes of the right types, and sizes (group, strides, dilations, kernel_shape) that are positive
    tensors     have a known type, no negative dimension, and as many bytes as their shape says
    types       of inputs are known, with at most `MAX_RANK` dimensions
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from functools import cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.equations import fault_of_equation
from relu_deploy.graph.loading.traversal import bodies_of, outer_reads

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_RANK", "check_links", "check_structure"]

#: NumPy's limit
MAX_RANK = 64
MAX_DEPTH = 32
#: largest number of elements that a tensor's dimensions may multiply to
MAX_ELEMENTS = 2**48
#: longest name of a node, tensor or operator: tables and reports repeat names
MAX_NAME = 2**20
#: attributes whose numbers must be positive in every operator that has them
POSITIVE = frozenset(["group", "strides", "dilations", "kernel_shape"])
HINT = "check that the file was copied whole, or export the model again: onnx.checker.check_model(path) should pass"


def check_links(proto: onnx.ModelProto, where: str) -> None:
    """Check the names and links of the main graph of `proto` alone: what was inlined may contradict it.

    Raises:
        InputError: If a tensor is read and not computed, computed twice or out of itself.
    """
    try:
        _check_graph(proto.graph, None)
    except _Broken as broken:
        raise InputError(f"{where} is not a valid ONNX model once its local functions are inlined: {broken}", HINT) from None


def check_structure(proto: onnx.ModelProto, where: str) -> None:
    """Check `proto` as this module describes.

    Args:
        proto: The parsed file. Weights in other files are not read.
        where: The file's name for error messages.

    Raises:
        InputError: If the structure is broken.
    """
    try:
        _check_model(proto)
    except _Broken as broken:
        raise InputError(f"{where} is not a valid ONNX model: {broken}", HINT) from None


#: by domain and name of a local function: how many inputs and outputs it has
_Functions = dict[tuple[str, str], tuple[int, int]]


class _Broken(Exception):
    """What is wrong with the file."""


def _check_text(*texts: object) -> None:
    """Raise an error for a text that is not UTF-8: protobuf returns it as bytes, which nothing expects."""
    if any(isinstance(text, bytes) for text in texts):
        raise _Broken("it holds a name or text that is not UTF-8")


def _texts_of(entries: Iterable[onnx.StringStringEntryProto]) -> list[str]:
    return [text for entry in entries for text in (entry.key, entry.value)]


def _check_values(values: Iterable[onnx.ValueInfoProto]) -> None:
    """Raise an error for a text of a tensor's description that is not UTF-8, or a name that is too long."""
    for value in values:
        dims = value.type.tensor_type.shape.dim
        _check_names(value.name, *(dim.dim_param for dim in dims))
        _check_text(value.doc_string, value.type.denotation, *(dim.denotation for dim in dims), *_texts_of(value.metadata_props))


def _check_names(*names: object) -> None:
    """Raise an error for a name that is not UTF-8 or is too long."""
    _check_text(*names)
    longest = max((name for name in names if isinstance(name, str)), key=len, default="")
    if len(longest) > MAX_NAME:
        raise _Broken(f"the name {longest[:40] + '...'!r} has {len(longest)} characters, at most {MAX_NAME} are supported")


def _check_model(proto: onnx.ModelProto) -> None:
    _check_text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    _check_text(*_texts_of(proto.metadata_props), *(opset.domain for opset in proto.opset_import))
    if not proto.graph.output:
        raise _Broken("its graph has no outputs" if proto.graph.node else "it has no graph, or is cut short")
    versions = _versions(proto.opset_import)
    functions = {(each.domain, each.name): (len(each.input), len(each.output)) for each in proto.functions}
    _check_graphs(proto.graph, versions, functions)
    for function in proto.functions:
        _check_function(function, versions | _versions(function.opset_import), functions)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    versions = {"" if opset.domain == "ai.onnx" else opset.domain: opset.version for opset in imports}
    for domain, version in versions.items():
        if not 0 <= version < 2**31:
            raise _Broken(f"it imports version {version} of the operator set {domain or 'ai.onnx'!r}")
    return versions


def _check_graphs(graph: onnx.GraphProto, versions: dict[str, int], functions: _Functions, around: _Scope | None = None) -> None:
    """Check a graph and those nested in it. around: the scope of the function that holds it, None for the main graph."""
    waiting: list[tuple[onnx.GraphProto, _Scope | None, int]] = [(graph, around, 0 if around is None else 1)]
    while waiting:
        current, outer, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Broken(f"its graphs nest more than {MAX_DEPTH} deep")
        scope = _check_graph(current, outer)
        for node in current.node:
            _check_node(node, versions, functions)
            if around is None and (referring := next((each for each in node.attribute if each.ref_attr_name), None)):
                raise _Broken(f"the attribute {referring.name!r} of the {_called(node)} refers to a function's, outside of any")
            waiting += [(body, scope, depth + 1) for body in bodies_of(node)]


class _Scope(NamedTuple):
    """The tensors of a graph, and the scope around it."""

    names: set[str]
    outer: _Scope | None

    def __contains__(self, name: object) -> bool:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True
            scope = scope.outer
        return False


def _check_graph(graph: onnx.GraphProto, outer: _Scope | None) -> _Scope:
    _check_text(graph.name, graph.doc_string, *_texts_of(graph.metadata_props))
    for tensor in graph.quantization_annotation:
        _check_text(tensor.tensor_name, *_texts_of(tensor.quant_parameter_tensor_names))
    _check_values((*graph.input, *graph.output, *graph.value_info))
    for value in graph.value_info:
        _check_type(value, required=False)
    given = set()
    for value in graph.input:
        if not value.name or value.name in given:
            raise _Broken(f"two inputs are called {value.name!r}" if value.name else "an input has no name")
        given.add(value.name)
        _check_type(value, outer is None)
    weights = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in weights:
            raise _Broken(f"two initializers are called {tensor.name!r}" if tensor.name else "an initializer has no name")
        weights.add(tensor.name)
        check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        if not sparse.values.name or sparse.values.name in weights:
            raise _Broken("a sparse initializer has no name of its own")
        weights.add(sparse.values.name)
        _check_sparse(sparse)
    made: set[str] = set()
    for node in graph.node:
        for name in node.output:
            if name and (name in made or name in given or name in weights):
                raise _Broken(f"{name!r} is computed twice")
            if name:
                made.add(name)
    scope = _Scope(given | weights | made, outer)
    _check_order(graph, scope, made)
    for value in graph.output:
        if value.name not in scope:
            raise _Broken(f"its output {value.name!r} is computed by no node")
        _check_type(value, required=False)
    return scope


def _check_order(graph: onnx.GraphProto, scope: _Scope, made: set[str]) -> None:
    """Check that every tensor that is read exists and that the nodes can be put in an order (Kahn's algorithm)."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[int, list[int]] = {}
    pending = [0] * len(graph.node)
    for index, node in enumerate(graph.node):
        reads = {name for name in node.input if name}
        if missing := next((name for name in node.input if name and name not in scope), None):
            raise _Broken(f"the {_called(node)} reads {missing!r}, which nothing provides")
        for name in reads | outer_reads(node):
            if name in made:
                pending[index] += 1
                readers.setdefault(maker[name], []).append(index)
    ready = deque(index for index, count in enumerate(pending) if count == 0)
    done = 0
    while ready:
        done += 1
        for reader in readers.get(ready.popleft(), ()):
            pending[reader] -= 1
            if pending[reader] == 0:
                ready.append(reader)
    if done < len(pending):
        stuck = next(index for index, count in enumerate(pending) if count)
        raise _Broken(f"the {_called(graph.node[stuck])} depends on its own result")


def _check_function(function: onnx.FunctionProto, versions: dict[str, int], functions: _Functions) -> None:
    _check_text(function.name, function.domain, function.overload, function.doc_string, *function.input, *function.output)
    _check_text(*(opset.domain for opset in function.opset_import), *function.attribute, *_texts_of(function.metadata_props))
    _check_text(*(text for each in function.attribute_proto for text in (each.name, each.ref_attr_name, each.doc_string)))
    _check_values(function.value_info)
    if not function.name or not function.output:
        raise _Broken("a local function has no name or no outputs")
    names = [*function.input, *(name for node in function.node for name in node.output if name)]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise _Broken(f"in the function {function.name!r} {twice!r} is computed twice")
    scope = _Scope(set(function.input) | {name for node in function.node for name in node.output if name}, None)
    for node in function.node:
        if missing := next((name for name in node.input if name and name not in scope), None):
            raise _Broken(f"in the function {function.name!r} the {_called(node)} reads {missing!r}, which nothing provides")
        _check_node(node, versions, functions)
        for body in bodies_of(node):
            _check_graphs(body, versions, functions, around=scope)
    if missing := next((name for name in function.output if name not in scope), None):
        raise _Broken(f"the function {function.name!r} does not compute its output {missing!r}")


# ---------------------------------------------------------------- nodes


class _Arity(NamedTuple):
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: tuple[str, ...]
    types: dict[str, int]


def _check_node(node: onnx.NodeProto, versions: dict[str, int], functions: _Functions) -> None:
    _check_names(node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
    _check_text(node.doc_string, *_texts_of(node.metadata_props))
    if not node.op_type:
        raise _Broken(f"the node {node.name!r} has no operator type")
    if not any(node.output):
        raise _Broken(f"the {_called(node)} has no outputs")
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (node.domain, node.op_type) in functions:
        inputs, outputs = functions[node.domain, node.op_type]
        arity = _Arity((0, inputs), (0, outputs), (), {}) if not node.overload else None
    else:
        arity = _arity(node.op_type, domain, versions.get(domain, 0))
    if node.op_type == "Einsum" and (fault := fault_of_equation(node)):
        raise _Broken(f"the {_called(node)}: {fault}")
    attributes = {attribute.name for attribute in node.attribute}
    if arity is not None:
        for label, count, (least, most) in (
            ("inputs", len(node.input), arity.inputs),
            ("outputs", len(node.output), arity.outputs),
        ):
            if not least <= count <= most:
                raise _Broken(f"the {_called(node)} has {count} {label}, the operator takes {least if count < least else most}")
        if missing := next((name for name in arity.required if name not in attributes), None):
            raise _Broken(f"the {_called(node)} lacks the attribute {missing!r}")
    for attribute in node.attribute:
        _check_attribute(node, attribute)
        if arity is not None and attribute.type != arity.types.get(attribute.name, attribute.type):
            raise _Broken(f"the attribute {attribute.name!r} of the {_called(node)} has the wrong type")


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    import onnx

    _check_text(attribute.name, attribute.ref_attr_name, attribute.doc_string)
    if not attribute.name:
        raise _Broken(f"the {_called(node)} has an attribute without a name")
    if attribute.type == onnx.AttributeProto.UNDEFINED and not attribute.ref_attr_name:
        raise _Broken(f"the attribute {attribute.name!r} of the {_called(node)} has no type, or an unknown one")
    for kind, field in (
        (onnx.AttributeProto.TENSOR, "t"),
        (onnx.AttributeProto.GRAPH, "g"),
        (onnx.AttributeProto.SPARSE_TENSOR, "sparse_tensor"),
    ):
        if attribute.type == kind and not attribute.ref_attr_name and not attribute.HasField(field):
            raise _Broken(f"the attribute {attribute.name!r} of the {_called(node)} has no value")
    if attribute.name in POSITIVE and not attribute.ref_attr_name:
        numbers = [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)
        if numbers and min(numbers) < 1:
            raise _Broken(f"the attribute {attribute.name!r} of the {_called(node)} must be positive")
    for tensor in (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors):
        check_tensor(tensor)
    for sparse in (*((attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()), *attribute.sparse_tensors):
        _check_sparse(sparse)


@cache
def _arity(op_type: str, domain: str, version: int) -> _Arity | None:
    """Return how many inputs and outputs an operator takes, None where ONNX does not define it."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version, domain) if version > 0 else onnx.defs.get_schema(op_type, domain)
    except onnx.defs.SchemaError:
        return None
    required = tuple(name for name, attribute in schema.attributes.items() if attribute.required)
    types = {name: int(attribute.type.value) for name, attribute in schema.attributes.items()}
    return _Arity((schema.min_input, schema.max_input), (schema.min_output, schema.max_output), required, types)


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} that computes {next(iter(node.output), '')!r}"


# ---------------------------------------------------------------- tensors and types


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Raise an error where type, shape and data of a constant do not fit together."""
    import onnx

    _check_names(tensor.name)
    _check_text(tensor.doc_string, *_texts_of(tensor.external_data), *_texts_of(tensor.metadata_props))
    name = f"the tensor {tensor.name!r}"
    if tensor.data_type not in _item_bits():
        raise _Broken(f"{name} has the unknown type {tensor.data_type}")
    if len(tensor.dims) > MAX_RANK:
        raise _Broken(f"{name} has {len(tensor.dims)} dimensions, at most {MAX_RANK} are supported")
    if any(dim < 0 for dim in tensor.dims):
        raise _Broken(f"{name} has a negative dimension")
    elements = prod(tensor.dims)
    if elements > MAX_ELEMENTS:
        raise _Broken(f"{name} has {elements} elements")
    bits = _item_bits()[tensor.data_type]
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise _Broken(f"{name} stores strings in another file")
        return
    if tensor.HasField("raw_data"):
        expected = -(-elements * bits // 8)
        if tensor.data_type == onnx.TensorProto.STRING or len(tensor.raw_data) != expected:
            raise _Broken(f"{name} has {len(tensor.raw_data)} bytes, its shape needs {expected}")
        return
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    stored = len(getattr(tensor, field))
    per_element = 2 if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
    packed = -(-elements * bits // 8) if bits < 8 else elements * per_element
    if stored != packed:
        raise _Broken(f"{name} has {stored} numbers, its shape needs {packed}")


@cache
def _item_bits() -> dict[int, int]:
    """Return the bits of one element by data type, for the types that can be read here. Strings count as 64."""
    import onnx
    import onnx_ir as ir

    known = {}
    for number in onnx.TensorProto.DataType.values():
        if number == onnx.TensorProto.UNDEFINED:
            continue
        try:
            dtype = ir.DataType(number)
        except ValueError:
            continue
        known[number] = 64 if dtype == ir.DataType.STRING else int(dtype.bitwidth)
    return known


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    import onnx

    for tensor in (sparse.values, sparse.indices):
        check_tensor(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise _Broken(f"the sparse tensor {sparse.values.name!r} is stored in another file")
    if any(dim < 0 for dim in sparse.dims) or prod(sparse.dims) > MAX_ELEMENTS or len(sparse.dims) > MAX_RANK:
        raise _Broken(f"the sparse tensor {sparse.values.name!r} has an invalid shape")


def _check_type(value: onnx.ValueInfoProto, required: bool) -> None:
    kind, depth = value.type, 0
    while (field := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind, depth = getattr(kind, field).elem_type, depth + 1
        if depth > MAX_DEPTH:
            raise _Broken(f"the types of {value.name!r} nest more than {MAX_DEPTH} deep")
    if field is None:
        if required:
            raise _Broken(f"its input {value.name!r} has no type")
        return
    if field not in ("tensor_type", "sparse_tensor_type"):
        return
    tensor = getattr(kind, field)
    if tensor.elem_type not in _item_bits() and (required or tensor.elem_type != 0):
        raise _Broken(f"{value.name!r} has the unknown type {tensor.elem_type}")
    if len(tensor.shape.dim) > MAX_RANK:
        raise _Broken(f"{value.name!r} has {len(tensor.shape.dim)} dimensions, at most {MAX_RANK} are supported")
    sizes = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
    # -1 is how some converters write an unknown size.
    if any(size < -1 for size in sizes):
        raise _Broken(f"{value.name!r} has a negative dimension")
    if prod(size for size in sizes if size > 0) > MAX_ELEMENTS:
        raise _Broken(f"{value.name!r} has a shape of {'x'.join(map(str, sizes))}")
