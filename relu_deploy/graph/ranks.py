"""Refuse graphs whose tensors have more dimensions than runtimes support, before a shape is inferred.

`Gather(t, t)` has nearly twice the dimensions of t, so that thirty such nodes have a shape of 10^9 dimensions, which onnx's shape
inference would allocate. So would Expand to a shape that is a vector of 10^8 elements. Upper bounds of ranks and sizes take
linear time and are enough for nearly all graphs. Where a bound exceeds `MAX_RANK`, shapes are inferred up to that node.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

from relu_deploy.graph.loading.structure import MAX_RANK
from relu_deploy.graph.loading.traversal import bodies_of
from relu_deploy.graph.rank_bounds import OPEN, Bound, bound_of_constant, bound_of_result, bound_of_type, union

if TYPE_CHECKING:
    import onnx

__all__ = ["TooManyDimensions", "check_ranks"]

#: passes of shape inference at least, and the seconds after which there are no more; each settles the nodes up to the next one whose
#: bound is too large
FEWEST_PASSES, SECONDS = 8, 10.0

Scope = ChainMap[str, Bound]
Functions = Mapping[tuple[str, str, str], "onnx.FunctionProto"]
Infer = Callable[["onnx.ModelProto"], "onnx.ModelProto"]


class TooManyDimensions(Exception):
    """A tensor has, or may have, more than `MAX_RANK` dimensions. The message names the node that computes it."""


def check_ranks(proto: onnx.ModelProto, infer: Infer) -> None:
    """Check the number of dimensions of every tensor.

    Args:
        proto: The graph, without its large weights. It is changed while this runs, and restored.
        infer: Infers the types and shapes, and does not raise for what does not fit.

    Raises:
        TooManyDimensions: If a tensor has more than `MAX_RANK` dimensions.
    """
    exact: dict[int, Bound] = {}
    # The identity of a node is its own only as long as something holds it.
    held: list[onnx.NodeProto] = []
    functions = _functions_of(proto)
    began, passes = time.monotonic(), 0
    while passes < FEWEST_PASSES or time.monotonic() - began < SECONDS:
        passes += 1
        bounds = _Bounds(functions, exact)
        bounds.visit(proto.graph, ChainMap(), ())
        if not bounds.suspects:
            return
        held += bounds.suspects
        with _hidden(bounds.suspects):
            try:
                inferred = infer(proto)
            except Exception as error:
                raise _unbounded(bounds.suspects[0], str(error)) from error
        _settle(proto.graph, inferred.graph, ChainMap(), bounds, exact)
    raise _unbounded(bounds.suspects[0], "too many shapes depend on values")


def _functions_of(proto: onnx.ModelProto) -> Functions:
    return {(each.domain, each.name, each.overload): each for each in proto.functions}


def _unbounded(node: onnx.NodeProto, reason: str) -> TooManyDimensions:
    return TooManyDimensions(f"{_called(node)} may compute a tensor of more than {MAX_RANK} dimensions: {reason}")


class _Bounds:
    """The bounds of the tensors of a graph.

    Args:
        functions: The local functions of the model.
        exact: Bounds of results that are known, by the identity of the node.

    Attributes:
        functions: As given.
        suspects: Nodes whose results may have too many dimensions.
        suspected: The identities of the suspects.
        ready: Those of the suspects whose operands depend on no other suspect.
    """

    def __init__(self, functions: Functions, exact: Mapping[int, Bound]) -> None:
        self.functions, self._exact = functions, exact
        self._calls: dict[tuple[tuple[str, str, str], int], Bound] = {}
        #: tensors that depend on the result of a suspect
        self._pending: set[str] = set()
        self.suspects: list[onnx.NodeProto] = []
        self.suspected: set[int] = set()
        self.ready: set[int] = set()

    def visit(self, graph: onnx.GraphProto, outer: Scope, operands: Sequence[Bound]) -> Scope:
        """Return the bounds of the tensors of `graph`.

        Args:
            graph: Its nodes are in order; inference finds nothing about a node before its operands, either.
            outer: The bounds of the tensors of the graphs around it.
            operands: What becomes its inputs, where that is known.
        """
        bounds = outer.new_child()
        for index, value in enumerate(graph.input):
            bounds[value.name] = union(bound_of_type(value.type), operands[index] if index < len(operands) else Bound())
        for tensor in graph.initializer:
            bounds[tensor.name] = bound_of_constant(tensor)
        for sparse in graph.sparse_initializer:
            bounds[sparse.values.name] = Bound(len(sparse.dims), prod(sparse.dims))
        recorded = {value.name: bound_of_type(value.type) for value in (*graph.value_info, *graph.output)}
        for node in graph.node:
            self._visit_node(node, bounds, recorded)
        return bounds

    def _visit_node(self, node: onnx.NodeProto, bounds: Scope, recorded: Mapping[str, Bound]) -> None:
        operands = [bounds.get(name, Bound()) for name in node.input]
        before = len(self._pending)
        results = self._results(node, bounds, operands)
        is_pending = any(name in self._pending for name in node.input) or len(self._pending) > before
        if id(node) in self._exact:
            results = [self._exact[id(node)]]
        elif any(each.rank is not None and each.rank > MAX_RANK for each in results):
            self.suspects.append(node)
            self.suspected.add(id(node))
            if not is_pending:
                self.ready.add(id(node))
            results, is_pending = [Bound()], True
        if is_pending:
            self._pending.update(name for name in node.output if name)
        for index, name in enumerate(node.output):
            if name:
                result = results[min(index, len(results) - 1)]
                bounds[name] = union(result, recorded[name]) if name in recorded else result

    def _results(self, node: onnx.NodeProto, bounds: Scope, operands: Sequence[Bound]) -> list[Bound]:
        """Return the bounds of the results of `node`; the last one holds for the outputs that follow, too."""
        key = node.domain, node.op_type, node.overload
        if key in self.functions:
            return [self._call(key, operands)]
        given: list[Bound] = []
        carried = len(operands) - 2
        if node.op_type in ("Loop", "SequenceMap"):
            given = [Bound(each.rank, OPEN) for each in operands]
        elif node.op_type == "Scan":
            carried = len(operands) - next((each.i for each in node.attribute if each.name == "num_scan_inputs"), 0)
            lower = [0] * carried + [1] * len(operands)
            given = [
                Bound(None if each.rank is None else max(0, each.rank - less), OPEN)
                for each, less in zip(operands, lower, strict=False)
            ]
        bodies = [(body, self.visit(body, bounds, given)) for body in bodies_of(node)]
        if not bodies:
            return [bound_of_result(node, operands)]
        results = [[scope.get(value.name, Bound()) for value in body.output] for body, scope in bodies]
        if node.op_type in ("Loop", "Scan"):
            # What each iteration computes is stacked along one more dimension, but for the values that are carried on.
            first = results[0][node.op_type == "Loop" :]
            stacked = [Bound(None if each.rank is None else each.rank + 1, OPEN) for each in first[max(0, carried) :]]
            return [Bound(each.rank, OPEN) for each in first[: max(0, carried)]] + stacked or [Bound()]
        return [union(*each) for each in zip(*results, strict=False)] or [Bound()]

    def _call(self, key: tuple[str, str, str], operands: Sequence[Bound]) -> Bound:
        """Return the bound of the results of a call of a local function, which contains no call of itself."""
        highest = max((each.rank for each in operands if each.rank is not None), default=-1)
        if (key, highest) not in self._calls:
            function = self.functions[key]
            inner = _Bounds(self.functions, {})
            inner._calls = self._calls
            scope: Scope = ChainMap(dict.fromkeys(function.input, Bound(highest, OPEN) if highest >= 0 else Bound()))
            for node in function.node:
                inner._visit_node(node, scope, {})
            ranks = [scope.get(name, Bound()).rank for name in function.output]
            # Shapes inside a function are not inferred one by one.
            found = [MAX_RANK + 1] if inner.suspects else [rank for rank in ranks if rank is not None]
            self._calls[key, highest] = Bound(max(found), OPEN) if found else Bound()
        return self._calls[key, highest]


def _settle(graph: onnx.GraphProto, inferred: onnx.GraphProto, outer: Scope, bounds: _Bounds, exact: dict[int, Bound]) -> None:
    """Find the bounds of the results of suspects from the inferred types of their operands, where these depend on no other suspect.

    Args:
        graph: The graph.
        inferred: The same graph with inferred types.
        outer: What is known of the tensors of the graphs around it.
        bounds: The suspects, which are hidden in `inferred`.
        exact: Takes what is found.

    Raises:
        TooManyDimensions: If one has more than `MAX_RANK` dimensions.
    """
    known = outer.new_child(
        {value.name: bound_of_type(value.type) for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    )
    known.update((tensor.name, bound_of_constant(tensor)) for tensor in graph.initializer)
    for node, twin in zip(graph.node, inferred.node, strict=True):
        for body, twin_body in zip(bodies_of(node), bodies_of(twin), strict=True):
            _settle(body, twin_body, known, bounds, exact)
        if node.op_type == "Constant":
            known[node.output[0]] = bound_of_result(node, ())
        operands = [known.get(name, Bound()) for name in node.input]
        # Types that were inferred although other suspects are hidden do not depend on these.
        is_ready = id(node) in bounds.ready or all(each.rank is not None for each in operands)
        if id(node) not in bounds.suspected or not is_ready:
            continue
        if any(bodies_of(node)) or (node.domain, node.op_type, node.overload) in bounds.functions:
            raise _unbounded(node, "it contains a graph")
        result = bound_of_result(node, operands)
        if result.rank is not None and result.rank > MAX_RANK:
            dimensions = f"{result.rank} dimensions" if result.rank < OPEN else "too many dimensions"
            raise TooManyDimensions(f"{_called(node)} computes a tensor of {dimensions}, at most {MAX_RANK} are supported")
        exact[id(node)] = result


@contextmanager
def _hidden(nodes: Sequence[onnx.NodeProto]) -> Iterator[None]:
    """Let inference find nothing about the results of `nodes` for the time of the block."""
    operators = [node.op_type for node in nodes]
    try:
        for node in nodes:
            node.op_type = "Unsized"
        yield
    finally:
        for node, operator in zip(nodes, operators, strict=True):
            node.op_type = operator


def _called(node: onnx.NodeProto) -> str:
    return f"the {node.op_type} {node.name or next(iter(node.output), '')!r}"
