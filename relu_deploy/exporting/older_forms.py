"""Operators whose operands or attributes changed between operator sets, written in their older form.

Each function changes a node in place, or raises `NoOlderForm` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.exporting.node_parts import NodeParts
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NoOlderForm", "write_older_form"]

#: The first operator sets in which reductions, Pad and Split, in which Shape, and in which RoiAlign have their present form.
OPERANDS, RANGED_SHAPES, POINTS_AT_CENTERS = 18, 15, 16
#: The first ones with a Relu of integers, with sums and products of Scatter, and with its minima and maxima.
INTEGER_RELUS, SCATTERED_SUMS, SCATTERED_EXTREMES = 14, 16, 18


class NoOlderForm(Exception):
    """A node has no older form.

    Args:
        reason: Why, for the message.
        since: The first operator set in which it can be written.
    """

    def __init__(self, reason: str, since: int = OPERANDS) -> None:
        super().__init__(reason)
        self.since = since


def write_older_form(node: ir.Node, opset: int) -> None:
    """Write `node` as operator set `opset` has its operator, in place; nodes that have not changed stay.

    Raises:
        NoOlderForm: If that operator set has no such form.
    """
    change = FORMS.get(node.op_type)
    if change is not None:
        change(node, opset)


def _reduction(node: ir.Node, opset: int) -> None:
    """Axes are an operand since 18, and were an attribute."""
    if opset >= OPERANDS or len(node.inputs) < 2:
        return
    axes = _constant(node, 1, "axes")
    empty = axes is None or not axes.size
    if empty and _attribute(node, "noop_with_empty_axes", 0):
        raise NoOlderForm("it reduces nothing")
    _set_inputs(node, node.inputs[:1])
    _drop(node, "noop_with_empty_axes")
    if not empty:
        assert axes is not None
        _set(node, "axes", [int(axis) for axis in axes])


def _split(node: ir.Node, opset: int) -> None:
    """A number of parts stands for the sizes of the parts since 18."""
    count = _attribute(node, "num_outputs", None)
    if opset >= OPERANDS or count is None:
        return
    value, axis = node.inputs[0], _attribute(node, "axis", 0)
    size = None if value is None or value.shape is None else value.shape[axis]
    _drop(node, "num_outputs")
    if not isinstance(size, int):
        raise NoOlderForm("the size of the axis that it splits is not known")
    part = -(-size // count)
    if size != part * count:
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        _set_inputs(node, (value, _operand(node, np.array(sizes, np.int64), "split")))


def _pad(node: ir.Node, opset: int) -> None:
    """The axes that are padded are an operand since 18; before, all of them were."""
    if opset >= OPERANDS or len(node.inputs) < 4:
        return
    axes, pads, value = _constant(node, 3, "axes"), _constant(node, 1, "pads"), node.inputs[0]
    if axes is None:
        _set_inputs(node, node.inputs[:3])
        return
    if pads is None or value is None or value.shape is None:
        raise NoOlderForm("how much it pads is computed")
    whole = np.zeros((2, len(value.shape)), np.int64)
    whole[:, axes] = pads.reshape(2, -1)
    _set_inputs(node, (value, _operand(node, whole.reshape(-1), "pads"), node.inputs[2]))


def _relu(node: ir.Node, opset: int) -> None:
    """Relu takes integers since 14."""
    value = node.inputs[0]
    if opset >= INTEGER_RELUS or value is None or value.dtype is None or not value.dtype.is_integer():
        return
    parts = NodeParts(node)
    parts.replace(parts.add("Max", value, parts.constant(np.zeros((), value.dtype.numpy()))))


def _resize(node: ir.Node, opset: int) -> None:
    if opset >= OPERANDS:
        return
    if _attribute(node, "antialias", 0):
        raise NoOlderForm("it has an antialiasing filter, which opset 18 introduced")
    axes = _attribute(node, "axes", None)
    value = node.inputs[0]
    if axes is None:
        return
    if value is None or value.shape is None or len(axes) != len(value.shape):
        raise NoOlderForm("it resizes some axes, which opset 18 introduced")
    if list(axes) == list(range(len(axes))):
        _drop(node, "axes")


def _shape(node: ir.Node, opset: int) -> None:
    """A part of the dimensions is taken since 15."""
    if opset >= RANGED_SHAPES or not {"start", "end"} & node.attributes.keys():
        return
    parts, value = NodeParts(node), node.inputs[0]
    assert value is not None
    limits = _attribute(node, "start", 0), _attribute(node, "end", np.iinfo(np.int64).max)
    start, end = (parts.constant(np.array([limit], np.int64)) for limit in limits)
    whole = parts.add("Shape", value)
    parts.replace(parts.add("Slice", whole, start, end, parts.constant(np.zeros(1, np.int64))))


def _cast_like(node: ir.Node, opset: int) -> None:
    value, like = node.inputs[0], node.inputs[1]
    if opset >= RANGED_SHAPES:
        return
    if value is None or like is None or like.dtype is None:
        raise NoOlderForm("the type that it converts to is not known", RANGED_SHAPES)
    parts = NodeParts(node)
    parts.replace(parts.add("Cast", value, to=int(like.dtype)))


def _scatter(node: ir.Node, opset: int) -> None:
    reduction = _attribute(node, "reduction", "none")
    needed = {"none": 0, "add": SCATTERED_SUMS, "mul": SCATTERED_SUMS}.get(reduction, SCATTERED_EXTREMES)
    if opset < needed:
        raise NoOlderForm(f"its reduction {reduction!r} was introduced by opset {needed}", needed)
    if opset < SCATTERED_SUMS:
        _drop(node, "reduction")


def _regions(node: ir.Node, opset: int) -> None:
    """The points were at the corners of pixels, and are at their centers by default since 16."""
    if opset >= POINTS_AT_CENTERS:
        return
    if _attribute(node, "coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise NoOlderForm("its points are at the centers of pixels, which opset 16 introduced", POINTS_AT_CENTERS)
    _drop(node, "coordinate_transformation_mode")


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _drop(node: ir.Node, name: str) -> None:
    node.attributes.pop(name, None)


def _set(node: ir.Node, name: str, value: Any) -> None:
    import onnx_ir as ir

    node.attributes[name] = ir.AttrInt64s(name, value)


def _constant(node: ir.Node, position: int, name: str) -> Array | None:
    """Return a constant operand, None where it is left out. Raises NoOlderForm for one that is computed."""
    operand = node.inputs[position] if position < len(node.inputs) else None
    if operand is None:
        return None
    found = constant_of(operand)
    if found is None:
        raise NoOlderForm(f"its {name} are computed")
    return found


def _operand(node: ir.Node, array: Array, name: str) -> ir.Value:
    """Return a new constant before `node`."""
    return NodeParts(node).inserted_constant(array, name)


def _set_inputs(node: ir.Node, inputs: Any) -> None:
    """Replace the inputs of `node`, fewer or as many as it has, or one more."""
    given = list(inputs)
    node.resize_inputs(len(given))
    for position, value in enumerate(given):
        node.replace_input_with(position, value)


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
FORMS: Mapping[str, Callable[[Any, int], None]] = {
    **{f"Reduce{name}": _reduction for name in REDUCTIONS},
    "CastLike": _cast_like,
    "Pad": _pad,
    "Relu": _relu,
    "Resize": _resize,
    "RoiAlign": _regions,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Split": _split,
}
