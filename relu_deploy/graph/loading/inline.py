"""Inline local functions, so that the operators inside them are nodes like all others.

A node inside a call is named `<call>/<node>`, a tensor `<call>/<tensor>`. The size of the result is computed before anything
is expanded: functions that call each other twice at each of thirty levels are a file of a few kilobytes and a graph of 2^30 nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.structure import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["inline_functions"]

#: most nodes of a graph whose functions are inlined
MAX_NODES = 1_000_000
#: deepest nesting of calls
MAX_CALLS = 64

Key = tuple[str, str, str]


def inline_functions(proto: onnx.ModelProto, where: str) -> None:
    """Inline the local functions of `proto`, in place.

    A function whose operator sets differ in meaning from the model's stays a call. A call that passes a graph as an attribute
    stays one as well.

    Raises:
        InputError: If functions call each other in a circle, or expand to more than `MAX_NODES` nodes.
    """
    if not proto.functions:
        return
    functions = {_key(function): function for function in proto.functions}
    versions = {opset.domain or "": opset.version for opset in proto.opset_import}
    usable = {key: function for key, function in functions.items() if _is_compatible(function, versions)}
    _check_size(proto.graph, functions, where)
    for function in usable.values():
        for opset in function.opset_import:
            if (opset.domain or "") not in versions:
                versions[opset.domain or ""] = opset.version
                proto.opset_import.add(domain=opset.domain, version=opset.version)
    _inline(proto.graph, usable)
    called = {_called(node) for node in _all_nodes(proto.graph)}
    left = [function for key, function in functions.items() if key in called or key not in usable]
    del proto.functions[:]
    if any(key in called for key in functions):
        proto.functions.extend(left)


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


def _check_size(graph: onnx.GraphProto, functions: Mapping[Key, onnx.FunctionProto], where: str) -> None:
    """Raise InputError where inlining would not end, or not in a graph of usable size."""
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


def _inline(graph: onnx.GraphProto, functions: Mapping[Key, onnx.FunctionProto]) -> None:
    """Replace every call in `graph` and in the graphs inside it."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        if any(_called(node) in functions for node in current.node):
            nodes = _expanded(list(current.node), functions)
            copies = [_copy(node) for node in nodes]
            del current.node[:]
            current.node.extend(copies)
        for node in current.node:
            waiting += bodies_of(node)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = type(node)()
    copied.CopyFrom(node)
    return copied


def _expanded(nodes: list[onnx.NodeProto], functions: Mapping[Key, onnx.FunctionProto]) -> list[onnx.NodeProto]:
    """Return `nodes` with the nodes of the functions in place of the calls, in order."""
    result: list[onnx.NodeProto] = []
    waiting = nodes[::-1]
    while waiting:
        node = waiting.pop()
        function = functions.get(_called(node))
        if function is None or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            result.append(node)
        else:
            waiting += _body_of(node, function)[::-1]
    return result


def _body_of(call: onnx.NodeProto, function: onnx.FunctionProto) -> list[onnx.NodeProto]:
    """Return the nodes of `function` with the tensors and attributes of `call`."""
    import onnx

    prefix = call.name or next(iter(call.output), function.name)
    names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
    results = dict(zip(function.output, call.output, strict=False))
    attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
    passed = {name: result for name, result in results.items() if name in names}
    names |= {name: result for name, result in results.items() if result and name not in passed}
    nodes = []
    for position, inner in enumerate(function.node):
        node = _copy(inner)
        node.name = f"{prefix}/{inner.name or f'{inner.op_type}_{position}'}"
        _rename(node, names, prefix)
        _bind_attributes(node, attributes)
        for entry in call.metadata_props:
            if all(entry.key != known.key for known in node.metadata_props):
                node.metadata_props.add(key=entry.key, value=entry.value)
        nodes.append(node)
    for position, (name, result) in enumerate(passed.items()):
        if result:
            # An output that is an input: the caller knows it by two names.
            nodes.append(
                onnx.helper.make_node("Identity", [names[name]], [result], name=f"{prefix}/Identity_{len(nodes) + position}")
            )
    return nodes


def _rename(node: onnx.NodeProto, names: dict[str, str], prefix: str) -> None:
    """Give the tensors of `node`, and of the graphs inside it, the names that they have in the caller."""

    def outer(name: str) -> str:
        return names.setdefault(name, f"{prefix}/{name}") if name else ""

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
            inner.name = f"{prefix}/{inner.name}" if inner.name else ""
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
