"""A graph compiled for evaluation: its nodes bound to operators, and the places where tensors are no longer needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.reference.registry import Operator, find
from relu_deploy.backends.reference.sizes import computing_sizes, never_rounded
from relu_deploy.backends.reference.types import as_text, dtype_of, widened, widened_dtype
from relu_deploy.errors import Unsupported
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Node", "Program", "Scope", "attribute_value", "compile_graph", "opsets_of", "schema_of", "unsupported_nodes"]


@dataclass(frozen=True)
class Scope:
    """What a graph is compiled in.

    opsets: version of each domain's operator set. functions: the model's local functions. bindings: values of a function's
    attributes. constants: tensors of the graph around that are weights. delegates: nodes that cannot be evaluated are run elsewhere.
    """

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], ir.Function]
    bindings: Mapping[str, Any]
    constants: AbstractSet[str] = frozenset()
    delegates: bool = False


@dataclass(slots=True, eq=False)
class Node:
    """A node bound to what evaluates it: an operator, a local function, the body that the specification defines, or a `Delegate`.

    Nothing changes it once its graph is compiled. Making frozen ones takes much longer.

    attributes: Python values; tensors are arrays, graphs are programs. reads: every tensor around it that it or its graphs
    read. constant: which of these are weights of the graph. weights: which of the inputs are. source: the node itself. delegated: a
    `Delegate` runs it. sizes: it computes nothing but sizes. done: tensors that nothing reads after this node, without the graph's
    outputs. done_outputs: the outputs among them.
    """

    name: str
    domain: str
    op_type: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    constant: tuple[bool, ...]
    weights: tuple[bool, ...]
    operator: Operator | None = None
    function: Program | None = None
    source: ir.Node | None = None
    delegated: bool = False
    sizes: bool = False
    done: tuple[str, ...] = ()
    done_outputs: tuple[str, ...] = ()

    def widened(self) -> Node:
        """Return the node with its constants, bodies and function in float64; itself where it has none."""
        if self.function is None and not any(isinstance(value, np.ndarray | Program) for value in self.attributes.values()):
            return self
        attributes = {
            key: value.widened() if isinstance(value, Program) else widened(value) if isinstance(value, np.ndarray) else value
            for key, value in self.attributes.items()
        }
        return replace(self, attributes=attributes, function=None if self.function is None else self.function.widened())


@dataclass(frozen=True)
class Program:
    """A compiled graph.

    captures: tensors of the graphs around it that it reads. exact: tensors that are never rounded. wide: it is evaluated in float64.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, Any]
    nodes: tuple[Node, ...]
    captures: tuple[str, ...]
    exact: frozenset[str]
    opsets: Mapping[str, int]
    output_types: tuple[tuple[np.dtype[Any] | None, tuple[int, ...] | None], ...] = ()
    wide: bool = False

    def widened(self) -> Program:
        """Return the graph in float64. It shares what does not depend on that: binding many nodes again takes seconds."""
        initializers = {name: widened(value) for name, value in self.initializers.items()}
        return replace(self, initializers=initializers, nodes=tuple(node.widened() for node in self.nodes), wide=True)

    def empty_output(self, index: int) -> Array:
        """Return no elements of the output at `index`, stacked: what a loop without iterations collects."""
        dtype, shape = self.output_types[index] if self.output_types else (None, None)
        dtype = np.dtype(np.float32) if dtype is None else dtype
        return np.zeros((0, *(shape or ())), widened_dtype(dtype) if self.wide else dtype)

    def all_programs(self) -> Iterator[Program]:
        """Yield this graph and those of bodies and local functions in it."""
        yield self
        for node in self.nodes:
            inner = [value for value in node.attributes.values() if isinstance(value, Program)]
            for program in [*inner, *([node.function] if node.function else [])]:
                yield from program.all_programs()

    def constant(self, name: str, otherwise: Any) -> Any:
        """Return the value of a tensor that is an initializer or made by a Constant node, else `otherwise`."""
        if name in self.initializers:
            return self.initializers[name]
        return next((node.attributes.get("value", otherwise) for node in self.nodes if node.outputs == (name,)), otherwise)


def compile_graph(graph: ir.Graph | ir.Function, scope: Scope, taps: Sequence[ir.Value] = ()) -> Program:
    """Return `graph` with every node bound, in its own types. taps: Tensors of it that are outputs as well.

    Raises:
        Unsupported: If a node has neither an operator nor a function body.
    """
    initializers = {str(name): _array(value.const_value) for name, value in getattr(graph, "initializers", {}).items()}
    constants = set(initializers) | scope.constants
    inner, nodes = replace(scope, constants=constants), []
    for position, node in enumerate(graph):
        nodes.append(_bind(node, position, inner))
        if all(nodes[-1].constant):
            # A weight behind a DequantizeLinear or Transpose is still a weight.
            constants.update(nodes[-1].outputs)
    returned = [*graph.outputs, *taps]
    outputs = tuple(str(value.name) for value in returned)
    inputs = tuple(str(value.name) for value in graph.inputs)
    made = {*inputs, *initializers}
    captures: dict[str, None] = {}
    for bound in nodes:
        captures.update(dict.fromkeys(name for name in bound.reads if name not in made))
        made.update(bound.outputs)
    captures.update(dict.fromkeys(name for name in outputs if name and name not in made))
    for place in computing_sizes(nodes, outputs):
        nodes[place].sizes = True
    _set_last_readers(nodes, outputs)
    return Program(
        str(graph.name or ""), inputs, outputs, initializers, tuple(nodes), tuple(captures),
        never_rounded(nodes), scope.opsets, tuple(_type_of(value) for value in returned),
    )  # fmt: skip


def _type_of(value: ir.Value) -> tuple[np.dtype[Any] | None, tuple[int, ...] | None]:
    """Return the type and shape that a graph declares for an output, unknown sizes as 0."""
    dtype = None if value.dtype is None else dtype_of(int(value.dtype))
    if value.shape is None:
        return dtype, None
    return dtype, tuple(size if isinstance(size, int) else 0 for size in value.shape)


def unsupported_nodes(model: ir.Model) -> list[tuple[str, str, str]]:
    """Return (node, domain, operator) of every node that cannot be evaluated, those of bodies and local functions included."""
    functions = {(str(domain or ""), str(name)) for domain, name, _ in model.functions}
    found: list[tuple[str, str, str]] = []

    def look(nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> None:
        @cache
        def is_supported(domain: str, operator: str) -> bool:
            version = opsets.get(domain, 1)
            return find(domain, operator, version) is not None or _has_body(domain, operator, version)

        for position, node in enumerate(nodes):
            domain = normal_domain(node.domain)
            if not is_supported(domain, node.op_type) and (node.domain, node.op_type) not in functions:
                found.append((str(node.name or f"{node.op_type}_{position}"), domain, node.op_type))

    opsets = opsets_of(model.opset_imports)
    look(model.graph.all_nodes(), opsets)
    for function in model.functions.values():
        look(function.all_nodes(), opsets_of(function.opset_imports))
    return found


def opsets_of(imports: Mapping[str, int | None]) -> dict[str, int]:
    """Return the versions of operator sets with "ai.onnx" under its other name, ""."""
    return {normal_domain(domain): int(version or 1) for domain, version in imports.items()}


def normal_domain(domain: str) -> str:
    """Return `domain`, "" for ai.onnx."""
    return "" if domain == "ai.onnx" else domain


def schema_of(domain: str, name: str, version: int) -> Any | None:
    """Return the onnx schema of an operator at a version of its operator set, None when onnx does not know it."""
    import onnx

    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


def _has_body(domain: str, name: str, version: int) -> bool:
    schema = schema_of(domain, name, version)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _bind(node: ir.Node, position: int, scope: Scope) -> Node:
    domain = normal_domain(node.domain)
    name = str(node.name or f"{node.op_type}_{position}")
    attributes = {}
    for key, attribute in node.attributes.items():
        if attribute.is_ref():
            if str(attribute.ref_attr_name) in scope.bindings:
                attributes[key] = scope.bindings[str(attribute.ref_attr_name)]
        else:
            attributes[key] = _attribute(attribute.value, scope)
    inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
    reads = dict.fromkeys(text for text in inputs if text)
    for value in attributes.values():
        if isinstance(value, Program):
            reads.update(dict.fromkeys(value.captures))
    version = scope.opsets.get(domain, 1)
    local = scope.functions.get((node.domain, node.op_type, node.overload or ""))
    function = _compile_function(local, attributes, scope) if local is not None else None
    bound = Node(
        name, domain, node.op_type, version, attributes, inputs, tuple(str(value.name or "") for value in node.outputs),
        tuple(reads), tuple(text in scope.constants for text in reads), tuple(text in scope.constants for text in inputs),
        None if function else find(domain, node.op_type, version), function, node,
    )  # fmt: skip
    bound.delegated = bound.operator is None and function is None and not _has_body(domain, node.op_type, version)
    if bound.delegated and not scope.delegates:
        raise Unsupported(
            f"the reference evaluator has no operator {domain or 'ai.onnx'}.{node.op_type} of version {version} (node {name!r})",
            "compare with the PyTorch program or with a graph of standard operators (--against), or cut this node off",
        )
    return bound


def _compile_function(function: ir.Function, given: Mapping[str, Any], scope: Scope) -> Program:
    bindings = {
        key: _attribute(attribute.value, scope)
        for key, attribute in function.attributes.items()
        if attribute.value is not None
    }  # fmt: skip
    opsets = {**scope.opsets, **opsets_of(function.opset_imports)}
    return compile_graph(function, replace(scope, opsets=opsets, bindings={**bindings, **given}, constants=frozenset()))


def _attribute(value: Any, scope: Scope) -> Any:
    import onnx_ir as ir

    # Whether something has the members of a tensor takes a hundred times as long to find out.
    if isinstance(value, bytes | float | int | str | tuple):
        return attribute_value(value)
    if isinstance(value, ir.Graph):
        return compile_graph(value, scope)
    if isinstance(value, ir.TensorProtocol):
        return _array(value)
    return attribute_value(value)


def attribute_value(value: Any) -> Any:
    """Return a plain attribute (number, text, list of them) as operators expect it."""
    return list(value) if isinstance(value, tuple) else value


def _array(tensor: Any) -> Any:
    array = np.asarray(tensor.numpy())
    if array.dtype.kind in "OSU":
        return as_text(array)
    return array


def _set_last_readers(nodes: Sequence[Node], outputs: Sequence[str]) -> None:
    """Set the tensors that can be freed after each node: in float64 they would fill the memory."""
    last = {name: place for place, node in enumerate(nodes) for name in (*node.reads, *node.outputs) if name}
    kept = set(outputs)
    done: dict[int, list[str]] = {}
    done_outputs: dict[int, list[str]] = {}
    for name, place in last.items():
        (done_outputs if name in kept else done).setdefault(place, []).append(name)
    for place, names in done.items():
        nodes[place].done = tuple(names)
    for place, names in done_outputs.items():
        nodes[place].done_outputs = tuple(names)
