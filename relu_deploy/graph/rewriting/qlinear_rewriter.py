"""What the rewriting of operators on quantized numbers has in common: see `qlinear`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.intervals.operands import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Parameters", "Rewriter", "is_single", "results_of"]

#: the scale and the zero point of a tensor of quantized numbers
Parameters = tuple["ir.Value", "ir.Value | None"]
#: places of the scale and zero point of the result among the inputs
RESULTS = {
    "QGemm": (7, 8),
    "QLinearAdd": (6, 7),
    "QLinearConcat": (0, 1),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearWhere": (7, 8),
}
UNARY = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "ReduceMean", "Sigmoid", "Softmax")
RESULTS |= {f"QLinear{name}": (3, 4) for name in UNARY}


def results_of(node: ir.Node) -> tuple[int, int] | None:
    """Return the places of the scale and the zero point of the result among the inputs of `node`, None for other operators."""
    return RESULTS.get(node.op_type)


def is_single(scale: ir.Value) -> bool:
    """Return whether a scale is one number for the whole tensor."""
    constant = constant_of(scale)
    if constant is not None:
        return int(constant.size) == 1
    return scale.shape is not None and len(scale.shape) == 0


def _is_same(some: Sequence[ir.Value | None], others: Sequence[ir.Value | None]) -> bool:
    """Return whether the tensors are the same, or constants of the same numbers."""
    if len(some) != len(others):
        return False
    constants = [(one, other, constant_of(one), constant_of(other)) for one, other in zip(some, others, strict=True)]
    return all(a is b or (x is not None and y is not None and np.array_equal(x, y)) for a, b, x, y in constants)


@dataclass
class Rewriter:
    """A graph in which nodes on quantized numbers are replaced by nodes on floats.

    Attributes:
        model: The graph.
        names: As for `expand_qlinear`.
        parameters: As `parameters_of` returns them for the graph.
        origins: The node of the graph before by the node that was made of it, where they have other names.
    """

    model: ir.Model
    names: dict[str, str]
    parameters: dict[str, Parameters]
    origins: dict[str, str] = field(default_factory=dict)
    _loaded: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _dequantizers: dict[str, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = [node for node, _ in iterate_nodes(self.model)]
        self._taken = {str(value.name) for node in nodes for value in node.outputs}
        self._taken |= {str(value.name) for value in (*self.model.graph.initializers.values(), *self.model.graph.inputs)}
        results = (node.outputs[0] for node in nodes if node.op_type == "DequantizeLinear")
        self._dequantizers = {str(value.name): value for value in results}

    def fresh(self, name: str) -> str:
        """Return `name`, with a number behind it where another tensor has it."""
        chosen, count = name, 0
        while chosen in self._taken:
            count += 1
            chosen = f"{name}_{count}"
        self._taken.add(chosen)
        return chosen

    def constant(self, name: str, array: Any) -> ir.Value:
        """Return a new initializer of the top graph, which bodies can read as well."""
        import onnx_ir as ir

        name = self.fresh(name)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array)))
        self.model.graph.register_initializer(value)
        return value

    def load(self, node: ir.Node, place: int, axis: int = 1) -> ir.Value:
        """Return the floats of the operand at `place`, whose scale and zero point are the next two inputs."""
        numbers, scale, zero = (node.inputs[each] if each < len(node.inputs) else None for each in range(place, place + 3))
        assert numbers is not None
        assert scale is not None
        return self.dequantized(node, numbers, scale, zero, axis)

    def dequantized(self, node: ir.Node, numbers: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int = 1) -> ir.Value:
        """Return the floats of `numbers`, which `node` reads. Readers with one scale and zero point in one graph share them."""
        attributes = {} if is_single(scale) else {"axis": axis}
        key = id(node.graph), id(numbers), id(scale), id(zero), *attributes.values()
        if key not in self._loaded:
            operands = [numbers, scale, *([zero] if zero is not None else [])]
            maker = numbers.producer()
            is_float_known = maker is not None and str(maker.name) in self.origins
            name = self.names.get(str(numbers.name), str(numbers.name))
            # Without a tensor before its QuantizeLinear that has the name, this one is compared.
            called = name if name != numbers.name and not is_float_known else f"{name}/dequantized"
            loaded = self._loaded[key] = self.insert(node, "DequantizeLinear", operands, attributes, name=called)
            if maker is not None and is_float_known and _is_same(maker.inputs[1:], operands[1:]):
                # What is wrong with the scale is wrong where it was chosen.
                self.origins[str(loaded.producer().name)] = self.origins[str(maker.name)]  # type: ignore[union-attr]
        return self._loaded[key]

    def insert(
        self,
        node: ir.Node,
        operator: str,
        operands: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        outputs: int = 1,
    ) -> ir.Value:
        """Insert a node before `node`, and return its first result, called `name` where it is free."""
        import onnx_ir as ir

        made = ir.node(operator, list(operands), attributes, num_outputs=outputs)
        for place, value in enumerate(made.outputs):
            value.name = self.fresh((name or f"{node.name}/{operator}") + (f"/{place}" if place else ""))
        made.name = f"{made.outputs[0].name}/{operator}"
        self.origins[made.name] = str(node.name)
        assert node.graph is not None
        node.graph.insert_before(node, [made])
        return made.outputs[0]

    def store(self, node: ir.Node, result: ir.Value, axis: int = 1, output: int = 0) -> None:
        """Let `result` stand for the floats that `node` computed, and its quantized numbers for the tensor that it returned.

        A node that returns no quantized numbers returns `result` itself: floats, or sums of integers.
        """
        import onnx_ir as ir

        places = results_of(node)
        stored = node.outputs[output]
        if places is not None:
            scale, zero = (node.inputs[place] if place < len(node.inputs) else None for place in places)
        else:
            scale, zero = self.parameters.get(str(stored.name), (None, None))
        name = str(stored.name)
        if scale is None:
            self._replace(stored, result)
            result.type = ir.TensorType(ir.DataType.FLOAT)
            return
        result.name = self._float_name(name)
        zero = zero if zero is not None else self._missing_zero(node)
        attributes = {} if is_single(scale) else {"axis": axis}
        self._replace(stored, self.insert(node, "QuantizeLinear", [result, scale, zero], attributes))

    def _float_name(self, stored: str) -> str:
        """Return the name of the floats that are quantized to the tensor `stored`."""
        name = self.names.get(stored, f"{stored}/float")
        taking = self._dequantizers.pop(name, None)
        if taking is not None and stored in self.names:
            self._taken.discard(name)
            taking.name = self.fresh(f"{name}/dequantized")
        return self.fresh(name)

    def finish(self, node: ir.Node, computing: ir.Value) -> None:
        """Remove `node`: the node that makes `computing` takes its name and what is known of it."""
        made = computing.producer()
        assert made is not None
        assert node.graph is not None
        self.origins.pop(str(made.name), None)
        made.name = node.name
        made.metadata_props.update(node.metadata_props)
        node.graph.remove(node, safe=True)

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, None
        new.name = name

    def _missing_zero(self, node: ir.Node) -> ir.Value:
        """Return a zero point of 0 in the type of the result, which is that of the first operand."""
        stored = node.outputs[0].dtype or (node.inputs[0].dtype if node.inputs[0] is not None else None)
        return self.constant(f"{node.name}/zero", np.zeros((), np.uint8 if stored is None else stored.numpy()))
