"""Find where a graph selects rows of its outputs, and expose the tensors that it selects by and from.

A detector may end in a NonMaxSuppression, or in a TopK and a Gather. Two of its boxes whose scores are nearly equal change places
with the least rounding, and one more or less changes the number of rows: the outputs of two graphs that compute the same numbers
cannot be subtracted. The tensors that enter the selection can be:

    conv ─► ... ─► scores ─► NonMaxSuppression ─► Gather ─► output         entering: scores and boxes
            ... ─► boxes ───────────┴────────────────┘

A selection inside a network, with layers behind it on each way to the outputs (a router of experts, the neighbors of points), is
not one of the outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.graph.bodies import inner_nodes, iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.subgraph import outer_reads

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["INDEXING", "EnteringTensor", "Selection", "expose_entering", "find_numbers", "find_selection", "measured_name"]

#: operators whose integers are places in a tensor: the one beside a place is as wrong as any other
INDEXING = frozenset(["ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK", "Unique"])
#: those that return one place for each row, and no list of them
ONE_PLACE = frozenset(["ArgMax", "ArgMin"])
#: operators that select rows or elements
SELECTING = INDEXING | {"Compress"}
#: operators of layers
LAYERS = frozenset(["Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"])


@dataclass(frozen=True)
class EnteringTensor:
    """A tensor that enters a selection.

    Attributes:
        name: Its name.
        readers: The nodes that read it, each with the position of the input. A variant of the graph may let them read a rounded
            copy of the tensor.
    """

    name: str
    readers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Selection:
    """The selection of a graph; without outputs where it selects none.

    Attributes:
        outputs: The outputs that are selected.
        floats: Those of them that are floating-point numbers.
        operators: Operators that select.
        entering: The floating-point tensors that enter the selection, in the graph's order. Empty where there are none.
        behind: Names of the nodes that compute with what was selected, in the graph's order.
    """

    outputs: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset()
    operators: tuple[str, ...] = ()
    entering: tuple[EnteringTensor, ...] = ()
    behind: tuple[str, ...] = ()


def find_selection(model: ir.Model) -> Selection:
    """Return the selection of the outputs of `model`.

    A node with bodies counts as one node, which selects where a node inside it does. What selects among constants, sizes or
    integer inputs returns the same in every precision, and is no selection.

    Args:
        model: A graph whose types are inferred. It is not modified.
    """
    search = _Search()
    for node in model.graph:
        search.visit(node)
    outputs = frozenset(str(value.name) for value in model.graph.outputs if search.is_selected(value))
    if not outputs:
        return Selection()
    needed = _needed(model, outputs)
    entering = _Entering(search)
    for node in needed:
        if node in search.selecting or any(str(value.name) in search.behind for value, _, _ in _reads(node)):
            entering.add_inputs(node)
    return Selection(
        outputs,
        frozenset(str(value.name) for value in model.graph.outputs if value.name in outputs and _is_float(value)),
        tuple(dict.fromkeys(name for node in needed if node in search.selecting for name in search.selecting[node])),
        entering.in_order(model),
        tuple(str(node.name) for node in model.graph if any(str(value.name) in search.behind for value in node.outputs)),
    )


def find_numbers(model: ir.Model) -> Selection:
    """Return the floating-point tensors that texts, maps and sequences are made of, where all outputs of `model` are such.

    Args:
        model: A graph whose types are inferred. It is not modified.

    Returns:
        They are the entering tensors; there is no output where one is a tensor of numbers.
    """
    names = frozenset(str(value.name) for value in model.graph.outputs)
    if any(_has_numbers(value) for value in model.graph.outputs):
        return Selection()
    search = _Search()
    for node in model.graph:
        search.visit(node)
    entering, operators = _Entering(search), []
    for node in _needed(model, names):
        makes_others = not all(_has_numbers(value) for value in node.outputs)
        operators += [node.op_type] if makes_others else []
        if makes_others or node in search.selecting or any(str(value.name) in search.behind for value, _, _ in _reads(node)):
            entering.add_inputs(node)
    return Selection(names, frozenset(), tuple(dict.fromkeys(operators)), entering.in_order(model))


def measured_name(tensor: str) -> str:
    """Return the name of the output that shows a tensor."""
    return f"{tensor}/measured"


def expose_entering(model: ir.Model, tensors: Sequence[EnteringTensor]) -> ir.Model | None:
    """Return a copy of `model` with additional float outputs, called `measured_name`, that show `tensors`.

    Where a reader of a tensor reads a rounded copy of it, the copy is shown.

    Args:
        model: The graph in which the tensors were found, the one that it was made from, or a variant of it. Its weights are shared.
        tensors: The tensors.

    Returns:
        The copy, None if `model` has no such tensor.
    """
    import onnx_ir as ir

    shown = model.clone()
    nodes = {str(node.name): node for node, _ in iterate_nodes(shown)}
    made = {str(value.name): value for node in shown.graph for value in node.outputs}
    for tensor in tensors:
        read = [
            value
            for name, position in tensor.readers
            if name in nodes and position < len(nodes[name].inputs) and (value := nodes[name].inputs[position]) is not None
        ]
        # A body may read a tensor of its own.
        read = [value for value in read if made.get(str(value.name)) is value]
        copies = [value for value in read if value.name != tensor.name]
        value = next(iter((*copies, *read)), made.get(tensor.name))
        if value is None or not _is_float(value):
            return None
        name = measured_name(tensor.name)
        if value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            copied = ir.node("Identity", [value], name=name)
            copied.outputs[0].type = value.type
        else:
            copied = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=name)
            copied.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        copied.outputs[0].name, copied.outputs[0].shape = name, value.shape
        shown.graph.append(copied)
        shown.graph.outputs.append(copied.outputs[0])
    return shown


class _Search:
    """What is known about the tensors of a graph, node by node.

    Attributes:
        inexact: Tensors that another precision may change.
        behind: Tensors behind a selection.
        selecting: The nodes that select, with the operators that do.
    """

    def __init__(self) -> None:
        self.inexact: set[str] = set()
        self.behind: set[str] = set()
        self.selecting: dict[ir.Node, tuple[str, ...]] = {}
        #: tensors that depend on what is fed
        self._fed: set[str] = set()
        #: tensors that a selection reaches without a layer in between: any selection, and one of a list of places
        self._selected: set[str] = set()
        self._listed: set[str] = set()

    def is_selected(self, output: ir.Value) -> bool:
        """Return whether an output of the graph is selected. An integer that is the best class of each row is not."""
        return str(output.name) in (self._selected if _is_float(output) else self._listed)

    def visit(self, node: ir.Node) -> None:
        """Follow the tensors through the next node in the graph's order."""
        read = [value for value, _, _ in _reads(node)]
        names = {str(value.name) for value in read}
        made = {str(value.name) for value in node.outputs if value.name}
        fed = [value for value in read if value.is_graph_input() or str(value.name) in self._fed]
        if not fed or (_gives_size(node) and not names & self.behind):
            return
        self._fed |= made
        is_inexact = any(str(value.name) in self.inexact or (value.is_graph_input() and _may_be_float(value)) for value in fed)
        self.inexact |= {str(value.name) for value in node.outputs if value.name and (is_inexact or _may_be_float(value))}
        operators = tuple(dict.fromkeys(_selecting_operators(node))) if is_inexact else ()
        if operators:
            self.selecting[node] = operators
        if operators or names & self.behind:
            self.behind |= made
        passes = node.op_type not in LAYERS
        if operators or (passes and names & self._selected):
            self._selected |= made
        if any(name not in ONE_PLACE for name in operators) or (passes and names & self._listed):
            self._listed |= made


class _Entering:
    """Collects the floating-point tensors that enter a selection.

    A Where that replaces some numbers by a constant is passed: where the condition is about numbers that are nearly equal, another
    element may be replaced. The numbers before it are collected.
    """

    def __init__(self, search: _Search) -> None:
        self._search = search
        self._readers: dict[str, list[tuple[str, int]]] = {}
        self._visited: set[ir.Node] = set()

    def add_inputs(self, node: ir.Node) -> None:
        """Add what `node` reads and another precision may change; for integers and booleans, the numbers that they come from."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node in self._visited:
                continue
            self._visited.add(node)
            for value, reader, position in _reads(node):
                name, maker = str(value.name), value.producer()
                if maker is None or name in self._search.behind or name not in self._search.inexact:
                    continue
                if _is_float(value) and not self._is_mask(maker):
                    self._readers.setdefault(name, []).append((str(reader.name), position))
                elif not _gives_size(maker):
                    waiting.append(maker)

    def _is_mask(self, node: ir.Node) -> bool:
        """Return whether `node` replaces numbers by a constant."""
        return node.op_type == "Where" and any(
            str(value.name) not in self._search.inexact for value in node.inputs[1:] if value is not None
        )

    def in_order(self, model: ir.Model) -> tuple[EnteringTensor, ...]:
        """Return the tensors in the graph's order."""
        names = [str(value.name) for node in model.graph for value in node.outputs]
        return tuple(EnteringTensor(name, tuple(self._readers[name])) for name in names if name in self._readers)


def _needed(model: ir.Model, outputs: Collection[str]) -> list[ir.Node]:
    """Return the nodes that the tensors `outputs` depend on, in the graph's order."""
    wanted, nodes = set(outputs), []
    for node in reversed(list(model.graph)):
        if any(value.name in wanted for value in node.outputs):
            nodes.append(node)
            wanted |= {str(value.name) for value, _, _ in _reads(node)}
    return nodes[::-1]


def _reads(node: ir.Node) -> list[tuple[ir.Value, ir.Node, int]]:
    """Return the tensors of the top graph that `node` reads, each with the node that does, which may be in a body, and the position."""
    direct = [(value, node, position) for position, value in enumerate(node.inputs) if value is not None]
    return [*direct, *(read for read in outer_reads(node) if _graph_of(read[0]) is node.graph)]


def _graph_of(value: ir.Value) -> Any:
    maker = value.producer()
    return value.graph if maker is None else maker.graph


def _selecting_operators(node: ir.Node) -> list[str]:
    return [each.op_type for each in (node, *inner_nodes(node)) if each.op_type in SELECTING and is_standard(each)]


def _gives_size(node: ir.Node) -> bool:
    return node.op_type in ("Shape", "Size") and is_standard(node)


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    return isinstance(value.type, ir.TensorType) and value.dtype is not None and value.dtype.is_floating_point()


def _has_numbers(value: ir.Value) -> bool:
    """Return whether `value` is a tensor of numbers, or may be one."""
    import onnx_ir as ir

    maker = value.producer()
    # The type of a map is not recorded.
    if value.type is None:
        return maker is None or maker.op_type != "ZipMap"
    return isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
