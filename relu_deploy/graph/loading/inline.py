"""Inline local functions, so that the operators inside them are nodes like all others.

A node inside a call is named `<call>/<node>`, a tensor `<call>/<tensor>`. The number of nodes of the result is computed before
anything is expanded: functions that call each other twice at each of thirty levels are a file of a few kilobytes and a graph of 2^30
nodes. Its bytes are counted while it is expanded: a call may repeat a constant, an attribute or a long name as often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.structure import check_links
from relu_deploy.graph.loading.traversal import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["inline_functions"]

#: most nodes of a graph whose functions are inlined
MAX_NODES = 1_000_000
#: most nodes of a function that is expanded before it is called: of larger ones the nodes take most of the time
SMALL = 32
#: deepest nesting of calls
MAX_CALLS = 64
#: bytes that the calls may add to the model
MAX_ADDED = 2**29
#: bytes of the metadata of a call that its nodes get
MAX_METADATA = 4096
#: longest name of an expanded node or tensor; a longer one ends in its hash
MAX_NAME = 400
#: domains whose operators a local function must not replace: runtimes differ in which of the two they run
DEFINED = ("", "ai.onnx", "ai.onnx.ml")

Key = tuple[str, str, str]


def inline_functions(proto: onnx.ModelProto, where: str) -> None:
    """Inline the local functions of `proto`, in place.

    A function whose operator sets differ in meaning from the model's stays a call. A call that passes a graph as an attribute
    stays one as well.

    Raises:
        InputError: If functions call each other in a circle, expand to more than `MAX_NODES` nodes or `MAX_ADDED` bytes, are
            defined twice or replace an operator, or if what they expand to is no valid graph.
    """
    if not proto.functions:
        return
    functions = {_key(function): function for function in proto.functions}
    if twice := [key for key, count in Counter(map(_key, proto.functions)).items() if count > 1]:
        raise InputError(f"{where}: the local function {twice[0][1]!r} is defined twice", "export the model again")
    versions = {opset.domain or "": opset.version for opset in proto.opset_import}
    if replaced := next((key for key in functions if _is_operator(key, versions)), None):
        raise InputError(
            f"{where}: a local function replaces the operator {replaced[1]!r}", "export the model without local functions"
        )
    usable = {key: function for key, function in functions.items() if _is_compatible(function, versions)}
    sizes = _check_size(proto.graph, functions, where)
    for function in usable.values():
        for opset in function.opset_import:
            if (opset.domain or "") not in versions:
                versions[opset.domain or ""] = opset.version
                proto.opset_import.add(domain=opset.domain, version=opset.version)
    expansion = _Expansion(usable, where)
    expansion.flatten([key for key, size in sizes.items() if size <= SMALL])
    expansion.inline(proto.graph)
    check_links(proto, where)
    called = {_called(node) for node in _all_nodes(proto.graph)}
    left = [function for key, function in functions.items() if key in called or key not in usable]
    del proto.functions[:]
    if any(key in called for key in functions):
        proto.functions.extend(left)


def _is_operator(key: Key, versions: Mapping[str, int]) -> bool:
    """Return whether ONNX defines an operator of this name at the model's operator sets."""
    import onnx

    domain, name, _ = key
    if domain not in DEFINED:
        return False
    try:
        return bool(onnx.defs.get_schema(name, versions.get(domain, versions.get("", 1)), "" if domain == "ai.onnx" else domain))
    except onnx.defs.SchemaError:
        return False


def _key(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _called(node: onnx.NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes, waiting = [], [graph]
    while waiting:
        current = waiting.pop()
        for node in current.node:
            nodes.append(node)
            waiting += bodies_of(node)
    return nodes


def _is_compatible(function: onnx.FunctionProto, versions: Mapping[str, int]) -> bool:
    """Return whether the operators of `function` mean the same at the model's operator sets."""
    import onnx

    own = {opset.domain or "": opset.version for opset in function.opset_import}
    nodes = _all_nodes(onnx.GraphProto(node=function.node))
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        inner, outer = own.get(domain), versions.get(domain)
        if inner is None or outer is None or inner == outer:
            continue
        try:
            same = {onnx.defs.get_schema(node.op_type, version, domain).since_version for version in (inner, outer)}
        except onnx.defs.SchemaError:
            continue
        if len(same) > 1:
            return False
    return True


def _check_size(graph: onnx.GraphProto, functions: Mapping[Key, onnx.FunctionProto], where: str) -> dict[Key, int]:
    """Return the number of nodes that each function expands to, those first that others call.

    Raises InputError where inlining would not end, or not in a graph of usable size.
    """
    import onnx

    calls: dict[Key, list[Key]] = {}
    plain: dict[Key, int] = {}
    for key, function in functions.items():
        nodes = _all_nodes(onnx.GraphProto(node=function.node))
        calls[key] = [_called(node) for node in nodes if _called(node) in functions]
        plain[key] = len(nodes) - len(calls[key])
    totals: dict[Key, int] = {}
    depths: dict[Key, int] = {}
    for start in functions:
        # Post-order without recursion; a function that is met again while it is open calls itself.
        path: list[tuple[Key, int]] = [(start, 0)]
        open_keys = {start}
        while path:
            key, position = path.pop()
            if key in totals:
                open_keys.discard(key)
                continue
            if position < len(calls[key]):
                path.append((key, position + 1))
                inner = calls[key][position]
                if inner in open_keys:
                    raise InputError(f"{where}: the local function {inner[1]!r} calls itself", "export the model again")
                if inner not in totals:
                    open_keys.add(inner)
                    path.append((inner, 0))
                continue
            totals[key] = min(plain[key] + sum(totals[inner] for inner in calls[key]), 2**62)
            depths[key] = 1 + max((depths[inner] for inner in calls[key]), default=0)
            open_keys.discard(key)
    nodes = _all_nodes(graph)
    size = sum(totals.get(_called(node), 1) for node in nodes)
    if size > MAX_NODES or max(depths.values(), default=0) > MAX_CALLS:
        raise InputError(
            f"{where}: its local functions expand to {size if size < 2**62 else 'more than 2^62'} nodes, "
            f"at most {MAX_NODES} are supported",
            "export the model without local functions",
        )
    return totals


class _Expansion:
    """Replaces calls by the nodes of the functions.

    Args:
        functions: Those that are inlined. `flatten` replaces some.
        where: The file's name for error messages.
    """

    def __init__(self, functions: Mapping[Key, onnx.FunctionProto], where: str) -> None:
        self._functions, self._where = dict(functions), where
        self._left = MAX_ADDED

    def flatten(self, keys: Iterable[Key]) -> None:
        """Replace the calls in functions: one that is called often is then not expanded level by level each time.

        keys: Functions, those first that others call.
        """
        for key in keys:
            function = self._functions.get(key)
            if function is not None and any(_called(node) in self._functions for node in function.node):
                flat = type(function)()
                flat.CopyFrom(function)
                del flat.node[:]
                flat.node.extend(self._expanded(list(function.node)))
                self._functions[key] = flat

    def inline(self, graph: onnx.GraphProto) -> None:
        """Replace every call in `graph` and in the graphs inside it."""
        waiting = [graph]
        while waiting:
            current = waiting.pop()
            if any(_called(node) in self._functions for node in current.node):
                nodes = self._expanded(list(current.node))
                copies = [_copy(node) for node in nodes]
                del current.node[:]
                current.node.extend(copies)
            for node in current.node:
                waiting += bodies_of(node)

    def _expanded(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return `nodes` with the nodes of the functions in place of the calls, in order."""
        result: list[onnx.NodeProto] = []
        waiting = nodes[::-1]
        while waiting:
            node = waiting.pop()
            function = self._functions.get(_called(node))
            if function is None or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                result.append(node)
                continue
            inner = []
            for each in _body_of(node, function):
                inner.append(each)
                self._left -= each.ByteSize()
                if self._left < 0:
                    raise InputError(
                        f"{self._where}: its local functions add more than {MAX_ADDED // 2**20} MiB to the graph",
                        "export the model without local functions",
                    )
            waiting += inner[::-1]
        return result


def _joined(prefix: str, name: str) -> str:
    """Return the name of a node or tensor in a call."""
    return _shortened(f"{prefix}/{name}")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 20]}...{sha256(name.encode()).hexdigest()[:17]}"


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = type(node)()
    copied.CopyFrom(node)
    return copied


def _body_of(call: onnx.NodeProto, function: onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of `function` with the tensors and attributes of `call`."""
    import onnx

    prefix = _shortened(call.name or next(iter(call.output), function.name))
    metadata = list(call.metadata_props) if sum(entry.ByteSize() for entry in call.metadata_props) <= MAX_METADATA else []
    names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
    results = dict(zip(function.output, call.output, strict=False))
    attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
    passed = {name: result for name, result in results.items() if name in names}
    names |= {name: result for name, result in results.items() if result and name not in passed}
    for position, inner in enumerate(function.node):
        node = _copy(inner)
        node.name = _joined(prefix, inner.name or f"{inner.op_type}_{position}")
        _rename(node, names, prefix)
        _bind_attributes(node, attributes)
        known = {entry.key for entry in node.metadata_props}
        node.metadata_props.extend(entry for entry in metadata if entry.key not in known)
        yield node
    for position, (name, result) in enumerate(passed.items()):
        if result:
            # An output that is an input: the caller knows it by two names.
            made = _joined(prefix, f"Identity_{len(function.node) + position}")
            yield onnx.helper.make_node("Identity", [names[name]], [result], name=made)


def _rename(node: onnx.NodeProto, names: dict[str, str], prefix: str) -> None:
    """Give the tensors of `node`, and of the graphs inside it, the names that they have in the caller."""

    def outer(name: str) -> str:
        return names.setdefault(name, _joined(prefix, name)) if name else ""

    node.input[:] = [outer(name) for name in node.input]
    node.output[:] = [outer(name) for name in node.output]
    waiting = list(bodies_of(node))
    while waiting:
        body = waiting.pop()
        for value in (*body.input, *body.output, *body.value_info):
            value.name = outer(value.name)
        for tensor in body.initializer:
            tensor.name = outer(tensor.name)
        for inner in body.node:
            inner.name = _joined(prefix, inner.name) if inner.name else ""
            inner.input[:] = [outer(name) for name in inner.input]
            inner.output[:] = [outer(name) for name in inner.output]
            waiting += bodies_of(inner)


def _bind_attributes(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> None:
    """Replace references to the function's attributes by their values; what the call leaves out is left out."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        bound = []
        for attribute in current.attribute:
            if not attribute.ref_attr_name:
                bound.append(attribute)
            elif attribute.ref_attr_name in attributes:
                value = type(attribute)()
                value.CopyFrom(attributes[attribute.ref_attr_name])
                value.name = attribute.name
                bound.append(value)
        if len(bound) < len(current.attribute) or any(attribute.ref_attr_name for attribute in current.attribute):
            copies = []
            for attribute in bound:
                copied = type(attribute)()
                copied.CopyFrom(attribute)
                copies.append(copied)
            del current.attribute[:]
            current.attribute.extend(copies)
        for body in bodies_of(current):
            waiting += body.node
