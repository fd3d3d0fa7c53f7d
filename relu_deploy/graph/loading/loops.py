"""Refuse Loops and Scans that run for ever, or for minutes: what their constants and shapes say is known before anything runs.

A Loop ends after a number of turns, or when its condition becomes false. Where the condition is true in each turn whatever is computed,
the number of turns decides alone. A Scan has a turn for each element of its inputs. Other Loops depend on what is fed: they are limited
while they run, and by `--timeout`.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from relu_deploy.errors import InputError, TooLong
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.loading.traversal import bodies_of, outer_reads
from relu_deploy.run_limit import runs_are_limited

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

__all__ = ["GraphRuns", "check_loops", "graph_runs", "growing_states"]

#: most times that a Loop or Scan may run the nodes in its body, those of Loops inside it included: a runtime takes half an hour for these
MOST_RUNS = 10**9
#: the same for all of a graph together where Loops are limited: a runtime takes some ten seconds for these
MOST_LIMITED_RUNS = 10**7
#: operators that pass a condition on unchanged
_PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")
#: the version of Scan that has a batch in front of the sequences, and the lengths of these as its first input
_SCAN_OF_BATCHES = 8

Infer = Callable[["onnx.GraphProto"], "onnx.GraphProto"]
Constants = ChainMap[str, "onnx.TensorProto"]
Types = ChainMap[str, "onnx.TypeProto"]


class _Repetition(NamedTuple):
    """A Loop or Scan whose number of turns is known. runs: how often nodes in its body run in all."""

    node: onnx.NodeProto
    turns: int
    runs: int

    def __str__(self) -> str:
        often = f"{self.turns:,} times" if self.turns < 2**31 else "without end"
        return f"the {self.node.op_type} {self.node.name or self.node.output[0]!r} runs its body {often}"


def check_loops(proto: onnx.ModelProto, where: str) -> None:
    """Check the Loops and Scans of `proto`, in bodies and functions too.

    Args:
        proto: The model, its nodes in order. The length of a Scan is known where the shape of its input is recorded.
        where: The file's name for error messages.

    Raises:
        InputError: If a Loop never ends, or one runs its nodes more than `MOST_RUNS` times.
        TooLong: If all together run theirs more than `MOST_LIMITED_RUNS` times, and runs are limited.
    """
    groups = (proto.graph.node, *(function.node for function in proto.functions))
    if all(next(bodies_of(node), None) is None for nodes in groups for node in nodes):
        return
    found = list(_repetitions(proto))
    if not found:
        return
    longest = max(found, key=lambda each: each.runs)
    if longest.runs > MOST_RUNS:
        raise InputError(f"{where}: {longest}", "give the Loop a condition that becomes false, or fewer turns")
    total = sum(each.runs for each in found)
    if total > MOST_LIMITED_RUNS and runs_are_limited():
        raise TooLong(
            f"{where}: {longest}, and running {total:,} nodes may take minutes", "say how long it may take with --timeout"
        )


class GraphRuns(NamedTuple):
    """A graph, or one inside it, and how often it runs.

    Attributes:
        nodes: Its nodes.
        known: Its constants of one number, and those around it.
        types: The types of its tensors, and of those around it, as far as they are recorded.
        dims: The shapes of its initializers, and of those around it.
        turns: How often it runs in one run of the model, as far as that is known.
        version: Version of the standard operators.
    """

    nodes: Iterable[onnx.NodeProto]
    known: Constants
    types: Types
    dims: ChainMap[str, tuple[int, ...]]
    turns: int
    version: int

    def times(self, node: onnx.NodeProto) -> int | None:
        """Return how often `node` runs its body, None where that is not known, or for another node than a Loop or Scan."""
        times = _times(node, self.known)
        return _scan_length(node, self.types, self.version) if times is None else times

    def inside(self, body: onnx.GraphProto, turns: int) -> GraphRuns:
        """Return the same for a graph inside this one."""
        constants = _constants_of_nodes(body.node)
        return self._replace(
            nodes=body.node,
            known=self.known.new_child(_constants(body)).new_child(constants),
            types=self.types.new_child(_types(body)),
            dims=self.dims.new_child(_dims(body)),
            turns=turns,
        )


def graph_runs(proto: onnx.ModelProto) -> Iterator[GraphRuns]:
    """Yield the graph of `proto`, its functions, and all graphs inside these."""
    version = next((opset.version for opset in proto.opset_import if is_standard(opset)), 0)
    empty = GraphRuns((), ChainMap(), ChainMap(), ChainMap(), 1, version)
    waiting = [empty.inside(proto.graph, 1)]
    waiting += [
        empty._replace(nodes=function.node, known=ChainMap(_constants_of_nodes(function.node))) for function in proto.functions
    ]
    while waiting:
        runs = waiting.pop()
        yield runs
        for node in runs.nodes:
            bodies = list(bodies_of(node))
            times = runs.times(node) if bodies else None
            waiting += [runs.inside(body, runs.turns if times is None else runs.turns * times) for body in bodies]


def _repetitions(proto: onnx.ModelProto) -> Iterator[_Repetition]:
    for runs in graph_runs(proto):
        for node in runs.nodes:
            body = next(bodies_of(node), None)
            if body is not None and (times := runs.times(node)) is not None:
                yield _Repetition(node, times, runs.turns * times * max(1, len(body.node)))


def _dims(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}


def _scan_length(node: onnx.NodeProto, types: Types, version: int) -> int | None:
    """Return how often the Scan `node` runs its body, None where that is not known, or for another node."""
    if node.op_type != "Scan" or not is_standard(node):
        return None
    attributes = {attribute.name: attribute for attribute in node.attribute}
    count = attributes["num_scan_inputs"].i if "num_scan_inputs" in attributes else 0
    if not 0 < count <= len(node.input) or (kind := types.get(node.input[-count])) is None:
        return None
    dims = kind.tensor_type.shape.dim
    axes = attributes["scan_input_axes"].ints if "scan_input_axes" in attributes else ()
    axis = 1 if version == _SCAN_OF_BATCHES else axes[0] if axes else 0
    axis += len(dims) if axis < 0 else 0
    # A size of -1 is how some converters write an unknown one.
    return max(dims[axis].dim_value, 0) or None if 0 <= axis < len(dims) else None


def growing_states(graph: onnx.GraphProto, infer: Infer) -> Iterator[tuple[str, str, float]]:
    """Yield the states of Loops that each turn makes larger, with the elements that they have in the end.

    Args:
        graph: A graph with inferred shapes. The Loops inside its bodies are not looked at.
        infer: Infers the shapes of a graph.

    Yields:
        Name of the Loop, name of the state, number of elements.
    """
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    known = _constants(graph).new_child(_constants_of_nodes(graph.node))
    for node in graph.node:
        if not (times := _times(node, known)):
            continue
        body = next(iter(bodies_of(node)))
        states = [types.get(name) for name in node.input[2:]]
        sizes = [states]
        for _ in range(2):
            typed = _with_types(body, states, types)
            outputs = {value.name: value.type for value in infer(typed).output}
            states = [outputs[value.name] for value in body.output[1 : len(states) + 1]]
            sizes.append(states)
        for value, *turns in zip(body.input[2:], *sizes, strict=False):
            first, second, third = (_elements(kind) for kind in turns)
            if first and second and third and third > second > first:
                yield node.name or node.output[0], value.name, _after(times, first, second, third)


def _after(times: int, first: int, second: int, third: int) -> float:
    """Return the elements of a state after `times` turns, from those before and after the first two."""
    if third - second <= second - first:
        # A list to which each turn adds the same.
        return first + float(times) * (second - first)
    # Beyond float64's largest number it is infinite.
    return float(2.0 ** min(times * math.log2(third / second) + math.log2(first), 1023.0))


def _with_types(
    body: onnx.GraphProto, states: Sequence[onnx.TypeProto | None], types: Mapping[str, onnx.TypeProto]
) -> onnx.GraphProto:
    """Return a copy of the body of a Loop in which states have the given types, and results no shape.

    types: those of the tensors around the Loop.
    """
    import onnx

    copy = onnx.GraphProto()
    copy.CopyFrom(body)
    for value, kind in zip(copy.input[2:], states, strict=False):
        if kind is not None:
            value.type.CopyFrom(kind)
    for value in copy.output:
        value.type.tensor_type.ClearField("shape")
    made = {value.name for value in copy.input} | {tensor.name for tensor in copy.initializer}
    made |= {name for each in copy.node for name in each.output}
    for name in dict.fromkeys(name for each in copy.node for name in (*each.input, *outer_reads(each))):
        if name and name not in made and name in types:
            copy.input.add(name=name).type.CopyFrom(types[name])
    return copy


def _elements(kind: onnx.TypeProto | None) -> int | None:
    """Return the number of elements of a tensor, None if a dimension is not known."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    shape = kind.tensor_type.shape
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in shape.dim]
    return None if any(size <= 0 for size in sizes) else math.prod(sizes)


def _times(node: onnx.NodeProto, known: Constants) -> int | None:
    """Return how often the Loop `node` runs its body whatever is fed; None where that is computed, or for another node."""
    if node.op_type != "Loop" or not is_standard(node):
        return None
    body = next(iter(bodies_of(node)), None)
    if (
        body is None
        or not body.output
        or len(body.input) < 2
        or not _is_true(node.input[1] if len(node.input) > 1 else "", known)
    ):
        return None
    if not _stays_true(body, known):
        return None
    count = node.input[0] if node.input else ""
    if not count:
        return 2**63
    tensor = known.get(count)
    return None if tensor is None else max(0, int(_number(tensor)))


def _stays_true(body: onnx.GraphProto, known: Constants) -> bool:
    """Return whether the condition that `body` computes is true if that which it is given is."""
    inside = known.new_child(_constants(body)).new_child(_constants_of_nodes(body.node))
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    for _ in range(len(body.node) + 1):
        if name == body.input[1].name:
            return True
        if name in inside:
            return _is_true(name, inside)
        maker = makers.get(name)
        if maker is None or maker.op_type not in _PASSING or not maker.input:
            return False
        name = maker.input[0]
    return False


def _is_true(name: str, known: Constants) -> bool:
    """Return whether a condition is absent, which counts as true, or a constant that is true."""
    return not name or (name in known and bool(_number(known[name])))


def _number(tensor: onnx.TensorProto) -> float:
    """Return the only number of a tensor, 0 if it has none."""
    from onnx import numpy_helper

    array = np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
    return array[0] if array.size == 1 else 0


def _constants(graph: onnx.GraphProto) -> Constants:
    return ChainMap({tensor.name: tensor for tensor in graph.initializer if _is_small(tensor)})


def _constants_of_nodes(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
    return {
        node.output[0]: attribute.t
        for node in nodes
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value" and _is_small(attribute.t)
    }


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is stored in the file and has at most one number."""
    return not tensor.external_data and all(dim == 1 for dim in tensor.dims) and tensor.data_type in (1, 6, 7, 9, 10, 11)
