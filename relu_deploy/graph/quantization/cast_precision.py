"""Writing float16 or bfloat16 into a float32 graph, as strongly typed runtimes such as TensorRT 11 want it: in the types.

A node is lowered when its operator's schema allows the dtype; which of its inputs go along is read there too: those that
share a type with its first result (the slopes of a PRelu, the bounds of a Clip), not those with one of their own (the scales
of a Resize, the statistics of a BatchNormalization). Inputs and outputs of the graph stay float32. Where the two meet stands
one Cast for a tensor and direction, however many read it.

A node stays float32 when its weights lose more than rounding explains (`losses.py`), or when it makes or reads a tensor that
was seen to reach more than half of the dtype's largest number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.graph.model import opset_of
from relu_deploy.graph.quantization.cast_error import STORED, WeightLoss, largest_of, loss_of
from relu_deploy.graph.quantization.cast_nodes import (
    TYPED_BY,
    cast,
    fresh,
    is_weight,
    replace,
    retype,
    store,
    taken_names,
    tensor_type,
    top_values,
)
from relu_deploy.graph.rewriting.opset import raise_opset
from relu_deploy.graph.rewriting.pass_result import PassResult
from relu_deploy.graph.rewriting.simplify import lift_constants
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.records import JsonRecord

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CastReport", "WeightLoss", "cast_model", "range_reasons", "simulated", "weight_losses"]

#: the first operator set in which convolutions and pools may have the dtype
OPSETS = {"float16": 0, "bfloat16": 22}
#: how far above what was seen a tensor may go before it overflows
HEADROOM = 2.0
#: operators that the schema would allow, and why they stay float32 nevertheless
UNFIT = {
    "GridSample": "16 bits are too few for the coordinates of GridSample",
    "MeanVarianceNormalization": "ONNX defines MeanVarianceNormalization with a float32 constant",
}
#: operators that pick or move numbers: what they give of rounded numbers is rounded
EXACT = frozenset(["Clip", "Concat", "Flatten", "MaxPool", "Max", "Min", "Relu", "Reshape", "Slice", "Squeeze", "Transpose"])
EXACT = EXACT | {"ConstantOfShape", "DepthToSpace", "Expand", "Gather", "GlobalMaxPool", "Identity", "Neg", "Pad", "Unsqueeze"}


@dataclass(frozen=True)
class CastReport(JsonRecord):
    """What a graph in 16 bits keeps in float32. float32_nodes: what stayed float32, by name, with the reason. converted: how many nodes did not.

    weights: what the lowered weights lose, where it is more than rounding of normal numbers.
    """

    dtype: str
    float32_nodes: Mapping[str, str]
    converted: int
    weights: Sequence[WeightLoss]


@dataclass(frozen=True)
class _Ports:
    """Which inputs and outputs of a node are of 16 bits.

    reason: why none of its float32 outputs is. waits: what decides it: "" nothing more, "inputs" for a node without float
    outputs (a comparison reads what there is), "readers" for one whose type is an attribute's.
    """

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    reason: str = ""
    waits: str = ""


def cast_model(model: ir.Model, dtype: str, keep: Mapping[str, str] = MappingProxyType({})) -> PassResult[CastReport]:
    """Return `model` with every node in `dtype` ("float16" or "bfloat16") that may be, and the reasons of the others.

    keep: nodes that stay float32, by name, with the reason. For bfloat16 the operator set becomes 22. A graph output that is
    computed in 16 bits keeps its name, the tensor before its Cast is called `<name>/<dtype>`.
    Raises UsageError for another dtype or a name in `keep` that no node has.
    """
    work = _prepared(model, dtype)
    names = {str(node.name) for node in work.graph}
    if missing := [name for name in keep if name not in names]:
        raise UsageError(f"no node of the graph is called {missing[0]!r}", nearest(missing[0], names))
    plan = _plan(work, dtype, keep)
    losses = list(_losses(plan, dtype))
    float32 = {str(node.name): ports.reason for node, ports in plan.items() if ports.reason and any(map(_is_float, node.outputs))}
    _write(work, plan, dtype)
    converted = sum(bool(ports.outputs) for ports in plan.values())
    return PassResult(work, converted > 0, CastReport(dtype, float32, converted, losses))


def range_reasons(model: ir.Model, dtype: str, maxima: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that have no room in `dtype`, by name, with the reason.

    maxima: largest magnitude seen of each tensor, by name; what is missing counts as small.
    """
    limit = largest_of(dtype) / HEADROOM
    work = _prepared(model, dtype)
    reasons = {loss.node: why for loss in _losses(_plan(work, dtype, {}), dtype) if (why := loss.reason(dtype))}
    for node in work.graph:
        for verb, values in (("makes", node.outputs), ("reads", node.inputs)):
            for value in values:
                seen = maxima.get(str(value.name), 0.0) if value is not None and _is_float(value) else 0.0
                if not seen <= limit and str(node.name) not in reasons:
                    far = f"more than half of {dtype}'s {largest_of(dtype):g}"
                    reasons[str(node.name)] = f"it {verb} {value.name}, which reaches {seen:.6g}: {far}"  # type: ignore[union-attr]
    return reasons


def weight_losses(model: ir.Model, dtype: str) -> list[WeightLoss]:
    """Return what the weights that `cast_model` would store in `dtype` lose, where it is more than rounding of normal numbers."""
    return list(_losses(_plan(_prepared(model, dtype), dtype, {}), dtype))


def _prepared(model: ir.Model, dtype: str) -> ir.Model:
    """Return a copy of `model` in which `dtype` can be written: new enough, constants as initializers, types known."""
    if dtype not in STORED:
        raise UsageError(f"a graph cannot be lowered to {dtype!r}", nearest(dtype, STORED))
    work = lift_constants(raise_opset(model, OPSETS[dtype]))
    if any(value.type is None for node in work.graph for value in node.outputs if value.name):
        infer_shapes(work)
    return work


# ---------------------------------------------------------------- which nodes, and which of their inputs


def _plan(model: ir.Model, dtype: str, keep: Mapping[str, str]) -> dict[ir.Node, _Ports]:
    opset = opset_of(model)
    plan = {
        node: _Ports(reason=keep[str(node.name)]) if str(node.name) in keep else _ports(node, opset, dtype)
        for node in model.graph
    }
    for node, ports in plan.items():
        if ports.waits == "readers":
            uses = [use for value in node.outputs for use in value.uses()]
            settled = all(not plan[use.node].waits and use.idx in plan[use.node].inputs for use in uses if use.node in plan)
            inside = all(use.node in plan for use in uses) and not any(value.is_graph_output() for value in node.outputs)
            plan[node] = _Ports(outputs=ports.outputs) if uses and settled and inside else _Ports(reason="it is read in float32")
    low = {node.outputs[position] for node, ports in plan.items() for position in ports.outputs}
    for node, ports in plan.items():
        if ports.waits == "inputs":
            fed = [node.inputs[position] for position in ports.inputs]
            fed = [value for value in fed if value is not None and not is_weight(value)]
            plan[node] = _Ports(inputs=ports.inputs) if fed and all(value in low for value in fed) else _Ports()
    return plan


def _ports(node: ir.Node, opset: int, dtype: str) -> _Ports:
    import onnx
    import onnx_ir as ir

    read = [position for position, value in enumerate(node.inputs) if value is not None and _is_float(value)]
    made = [position for position, value in enumerate(node.outputs) if _is_float(value)]
    if not read and not made:
        return _Ports()
    if node.domain != "":
        return _Ports(reason=f"{node.op_type} is an operator of {node.domain}")
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
        return _Ports(reason=f"{node.op_type} holds graphs of its own")
    if node.op_type in UNFIT:
        return _Ports(reason=UNFIT[node.op_type])
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return _Ports(reason=f"opset {opset} has no {node.op_type}")
    allowed = {one.type_param_str for one in schema.type_constraints if f"tensor({dtype})" in one.allowed_type_strs}

    def type_of(formal: Sequence[Any], position: int) -> str:
        # The last of a variadic operator's parameters stands for all that follow.
        return str(formal[min(position, len(formal) - 1)].type_str)

    types = {position: type_of(schema.inputs, position) for position in read}
    if not made:
        return _Ports(frozenset(position for position in read if types[position] in allowed), waits="inputs")
    first = type_of(schema.outputs, made[0])
    if first not in allowed:
        return _Ports(reason=f"{node.op_type} (opset {opset}) has no {dtype}")
    if node.op_type in TYPED_BY:
        return _Ports(outputs=frozenset(made), waits="readers")
    if first not in types.values():
        return _Ports(reason=f"the type of {node.op_type} is given by an attribute")
    unknown = [value for position, value in enumerate(node.inputs) if value is not None and value.type is None]
    if unknown:
        return _Ports(reason=f"the type of {unknown[0].name} is not known")
    return _Ports(
        frozenset(position for position in read if types[position] == first),
        frozenset(position for position in made if type_of(schema.outputs, position) == first),
    )


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _losses(plan: Mapping[ir.Node, _Ports], dtype: str) -> Iterator[WeightLoss]:
    for node, ports in plan.items():
        for position in sorted(ports.inputs):
            value = node.inputs[position]
            if value is not None and is_weight(value):
                loss = loss_of(str(value.name), str(node.name), value.const_value.numpy(), dtype)  # type: ignore[union-attr]
                if node.op_type == "Clip":
                    # An infinite bound is no bound, which is what a huge one says.
                    loss = dataclasses.replace(loss, overflowing=0)
                if loss.overflowing or loss.vanishing or loss.subnormal:
                    yield loss


# ---------------------------------------------------------------- types and casts


def _write(model: ir.Model, plan: Mapping[ir.Node, _Ports], dtype: str) -> None:
    """Give `model` the types of `plan`, in place, and the casts between them."""
    import onnx_ir as ir

    taken, graph = taken_names(model), model.graph
    low = {node.outputs[position] for node, ports in plan.items() for position in ports.outputs}
    for node, ports in plan.items():
        if node.op_type in TYPED_BY and ports.outputs:
            retype(node, dtype)
    for value in [value for value in top_values(model) if _is_float(value)]:
        name, uses = str(value.name), list(value.uses())
        wanting = [use for use in uses if use.node in plan and use.idx in plan[use.node].inputs]
        others = [use for use in uses if use not in wanting]
        if value in low:
            value.type = tensor_type(dtype)
            if value.is_graph_output():
                value.name = fresh(f"{name}/{dtype}", taken)
                replace(others, value, cast(graph, value, ir.DataType.FLOAT, name, taken))
            elif others:
                replace(others, value, cast(graph, value, ir.DataType.FLOAT, fresh(f"{name}/float32", taken), taken))
        elif wanting and is_weight(value):
            is_shared = bool(others) or value.is_graph_output()
            replace(wanting, None, store(model, value, dtype, fresh(f"{name}/{dtype}", taken) if is_shared else ""))
        elif wanting:
            replace(wanting, None, cast(graph, _origin(value), tensor_type(dtype).dtype, fresh(f"{name}/{dtype}", taken), taken))


def _origin(value: ir.Value) -> ir.Value:
    """Return what to cast instead of `value`: where that is a Cast of integers, these, so that no Cast follows a Cast."""
    maker = value.producer()
    before = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None
    return value if before is None or before.dtype is None or before.dtype.is_floating_point() else before


# ---------------------------------------------------------------- the same numbers without 16-bit kernels


def simulated(model: ir.Model) -> ir.Model:
    """Return `model` for a runtime that casts to float16 and bfloat16 but computes in neither; itself where it has neither.

    Every node computes in float32, on weights that have the 16-bit values, and what it gives is rounded by a Cast to the
    dtype and one back; picking and moving need none. The rounded tensor has the name; inputs and outputs are float32.
    Raises InputError when a graph inside a node has 16-bit tensors.
    """
    import onnx_ir as ir

    work = lift_constants(model)
    low = [value for value in top_values(work) if _is_low(value)]
    if any(_is_low(value) for node in work.graph.all_nodes() if node.graph is not work.graph for value in node.outputs):
        raise InputError("a graph inside an If, Loop or Scan has 16-bit tensors", "keep the node that holds it in float32")
    if not low:
        return model
    taken = taken_names(work)
    for value in low:
        dtype, maker, name = _name(value.dtype), value.producer(), str(value.name)
        if maker is None and is_weight(value):
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)  # type: ignore[union-attr]
        elif maker is None:
            _round(work.graph, value, dtype, fresh(f"{name}/rounded", taken), taken)
        elif maker.op_type == "Cast":
            uses = list(value.uses())
            value.name = fresh(f"{name}/{dtype}", taken)
            replace(uses, value, cast(work.graph, value, ir.DataType.FLOAT, name, taken))
            continue
        elif maker.op_type in EXACT:
            if maker.op_type in TYPED_BY:
                retype(maker, "float32")
        else:
            value.name = fresh(f"{name}/unrounded", taken)
            _round(work.graph, value, dtype, name, taken)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return work


def _round(graph: ir.Graph, value: ir.Value, dtype: str, name: str, taken: set[str]) -> None:
    """Let all that reads `value` read a tensor called `name` instead: `value` rounded to `dtype`, in float32."""
    import onnx_ir as ir

    uses = list(value.uses())
    narrow = cast(graph, value, tensor_type(dtype).dtype, fresh(f"{name}/{dtype}", taken), taken)
    wide = cast(graph, narrow, ir.DataType.FLOAT, name, taken)
    replace(uses, value if value.producer() is not None else None, wide)


def _is_low(value: ir.Value) -> bool:
    import onnx_ir as ir

    return isinstance(value.type, ir.TensorType) and _name(value.dtype) in STORED


def _name(dtype: ir.DataType | None) -> str:
    return "" if dtype is None else dtype.name.lower()
