"""Write operators on quantized numbers as DequantizeLinear, the operator on floats, and QuantizeLinear.

ONNX Runtime's quantizer and optimizer write QLinearConv, QLinearAdd and the like. The specification defines each of them in real
numbers: the operands dequantized, the operator on them, and its result quantized. Both forms return the same numbers, except where a
result is so near the middle of two levels that the rounding of a product decides. Operators that move stored numbers (MaxPool,
Reshape, Gather and others) are written in the same way, since they keep the order of numbers.

The node on floats keeps the name of the node that it stands for, and the QuantizeLinear keeps the name of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.rewriting.qlinear_dynamic import EXPANSIONS
from relu_deploy.graph.rewriting.qlinear_operators import MOVING, results_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Expansion", "expand_qlinear", "has_qlinear", "parameters_of"]

#: the scale and the zero point of a tensor of quantized numbers
Parameters = tuple["ir.Value", "ir.Value | None"]


def has_qlinear(model: ir.Model) -> bool:
    """Return whether a node of `model` computes on quantized numbers."""
    return any(_key(node) in EXPANSIONS for node, _ in iterate_nodes(model))


def expand_qlinear(model: ir.Model, names: Mapping[str, str] | None = None) -> Expansion:
    """Return a copy of `model` (weights shared) in which floats are computed between DequantizeLinear and QuantizeLinear.

    Args:
        model: The graph. A node that has no such form (scales that are computed, a Softmax over several axes) stays as it is.
        names: By tensor of quantized numbers, the name of the tensor of floats that is quantized to it. A DequantizeLinear whose
            result has this name gives it up.
    """
    expansion = Expansion(model.clone(), dict(names or {}))
    expansion.run()
    return expansion


def parameters_of(model: ir.Model) -> dict[str, Parameters]:
    """Return the scale and the zero point of each tensor of quantized numbers that a node computes, by name.

    Those that have a scale for each row or channel are left out.
    """
    found: dict[str, Parameters] = {}
    for node, _ in iterate_nodes(model):
        places = results_of(node) if _key(node) in EXPANSIONS else (1, 2) if node.op_type == "QuantizeLinear" else None
        if places is not None:
            scale, zero = (node.inputs[place] if place < len(node.inputs) else None for place in places)
            if scale is not None and _is_single(scale):
                found[str(node.outputs[0].name)] = scale, zero
        elif is_standard(node) and node.op_type in MOVING and node.inputs and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            known = found.get(source) or _read_with(node)
            if known is not None:
                found |= dict.fromkeys((str(value.name) for value in node.outputs[: MOVING[node.op_type]] if value.name), known)
    return found


def _read_with(node: ir.Node) -> Parameters | None:
    """Return the scale and the zero point with which the results of a node that moves stored weights are read."""
    weights = constant_of(node.inputs[0])
    if weights is None or weights.dtype.name not in ("int8", "uint8"):
        return None
    for reader in node.outputs[0].consumers():
        if reader.op_type == "DequantizeLinear" and reader.inputs[1] is not None and _is_single(reader.inputs[1]):
            return reader.inputs[1], reader.inputs[2] if len(reader.inputs) > 2 else None
    return None


def _is_single(scale: ir.Value) -> bool:
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


def _key(node: ir.Node) -> tuple[str, str]:
    return ("" if is_standard(node) else node.domain), node.op_type


@dataclass
class Expansion:
    """A graph in which floats are computed.

    Attributes:
        model: The graph.
        names: As for `expand_qlinear`.
        origins: The node of the graph before by the node that was made of it, where they have other names.
    """

    model: ir.Model
    names: dict[str, str]
    origins: dict[str, str] = field(default_factory=dict)
    _loaded: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    _parameters: dict[str, Parameters] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _dequantizers: dict[str, ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        """Rewrite every node that has such a form."""
        self._parameters = parameters_of(self.model)
        nodes = list(iterate_nodes(self.model))
        self._taken = {str(value.name) for node, _ in nodes for value in node.outputs}
        self._taken |= {str(value.name) for value in (*self.model.graph.initializers.values(), *self.model.graph.inputs)}
        results = (node.outputs[0] for node, _ in nodes if node.op_type == "DequantizeLinear")
        self._dequantizers = {str(value.name): value for value in results}
        for node, _ in nodes:
            expand = EXPANSIONS.get(_key(node))
            if expand is not None:
                expand(self, node)
            elif is_standard(node) and node.op_type in MOVING and str(node.outputs[0].name) in self._parameters:
                self._expand_moving(node)

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
        attributes = {} if _is_single(scale) else {"axis": axis}
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
            scale, zero = self._parameters.get(str(stored.name), (None, None))
        name = str(stored.name)
        if scale is None:
            self._replace(stored, result)
            result.type = ir.TensorType(ir.DataType.FLOAT)
            return
        result.name = self._float_name(name)
        zero = zero if zero is not None else self._missing_zero(node)
        attributes = {} if _is_single(scale) else {"axis": axis}
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

    def _expand_moving(self, node: ir.Node) -> None:
        """Move floats instead of stored numbers, and quantize them as they were."""
        import onnx_ir as ir

        results = [value for value in node.outputs[: MOVING[node.op_type]] if value.name]
        scale, zero = self._parameters[str(results[0].name)]
        source = node.inputs[0]
        assert source is not None
        if any(value.name for value in node.outputs[MOVING[node.op_type] :]):
            return
        operands: list[ir.Value | None] = [self.dequantized(node, source, scale, zero), *node.inputs[1:]]
        if node.op_type == "Pad":
            # Without a value it is the number 0 that is put around, whatever the zero point is.
            padding = operands[2] if len(operands) > 2 else None
            if padding is None:
                stored = np.uint8 if zero is None or zero.dtype is None else zero.dtype.numpy()
                padding = self.constant(f"{node.name}/padding", np.zeros((), stored))
            operands = [*operands[:2], self.dequantized(node, padding, scale, zero), *operands[3:]]
        made = ir.Node("", node.op_type, operands, list(node.attributes.values()), num_outputs=len(node.outputs))
        made.name = f"{node.name}/floats"
        assert node.graph is not None
        node.graph.insert_before(node, [made])
        for place, value in enumerate(node.outputs):
            if value.name:
                self.store(node, made.outputs[place], output=place)
            else:
                made.outputs[place].name = ""
        self.finish(node, made.outputs[0])
