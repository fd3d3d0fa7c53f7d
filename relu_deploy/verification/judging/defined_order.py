"""Graphs in which every result has one right value.

A TopK that may return its elements in any order is made to sort them. A Resize that aligns corners by a factor whose product with a
length is no whole number is given the lengths: by the specification's text the last element of the result is the last of the
operand, as in the runtimes, and by its reference implementation, which takes the product for the length, it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.model import read_model
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["with_defined_order"]


@contextmanager
def with_defined_order(bundle: Bundle, *, lengths: bool = True) -> Iterator[Bundle]:
    """Yield `bundle`, or for as long as the block lasts a copy of its graph in which every result has one right value.

    lengths: Give a Resize lengths instead of factors. A PyTorch program has no such choice.
    """
    model = read_model(bundle.onnx)
    if not any(_is_unsorted(node) or (lengths and _is_fractional(node)) for node, _ in iterate_nodes(model)):
        yield bundle
        return
    import onnx_ir as ir

    model = load_model(bundle.onnx)
    for node, _ in list(iterate_nodes(model)):
        if _is_unsorted(node):
            node.attributes["sorted"] = ir.AttrInt64("sorted", 1)
        elif lengths and _is_fractional(node):
            _give_lengths(node)
    with temporary_folder("sorted") as folder:
        path = folder / f"{bundle.name}.onnx"
        save_model(model, path)
        yield Bundle.open(path)


def _is_unsorted(node: ir.Node) -> bool:
    is_top_k = node.op_type == "TopK" and is_standard(node)
    return is_top_k and "sorted" in node.attributes and not node.attributes["sorted"].as_int()


def _is_fractional(node: ir.Node) -> bool:
    """Return whether `node` is a Resize that aligns corners by factors that may give no whole numbers."""
    if node.op_type != "Resize" or not is_standard(node) or len(node.inputs) < 3 or node.inputs[0] is None:
        return False
    transformation = node.attributes.get("coordinate_transformation_mode")
    if transformation is None or transformation.as_string() != "align_corners" or node.inputs[2] is None:
        return False
    factors, shape = constant_of(node.inputs[2]), node.inputs[0].shape
    if factors is not None and not factors.size:
        return False
    if factors is None or shape is None:
        return True
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(len(shape))
    scaled = [(shape[axis], factor) for axis, factor in zip(axes, factors.astype(np.float64), strict=True) if factor % 1]
    return any(not isinstance(length, int) or float(np.float32(length * factor)) % 1 for length, factor in scaled)


def _give_lengths(node: ir.Node) -> None:
    """Let a Resize read the lengths of its result instead of the factors, from which they are computed beside it."""
    import onnx_ir as ir

    x, factors = node.inputs[0], node.inputs[2]
    made: list[ir.Node] = []

    def add(operator: str, operands: list[ir.Value | None], **attributes: int) -> ir.Value:
        made.append(ir.node(operator, operands, attributes, name=f"{node.name}/{operator}_{len(made)}"))
        made[-1].outputs[0].name = f"{made[-1].name}/result"
        return made[-1].outputs[0]

    lengths = add("Shape", [x])
    if "axes" in node.attributes:
        axes = ir.tensor(np.array(node.attributes["axes"].as_ints(), np.int64))
        made.append(ir.node("Constant", [], {"value": axes}, name=f"{node.name}/axes"))
        made[-1].outputs[0].name = f"{node.name}/axes/result"
        lengths = add("Gather", [lengths, made[-1].outputs[0]])
    product = add("Mul", [add("Cast", [lengths], to=int(ir.DataType.FLOAT)), factors])
    sizes = add("Cast", [add("Floor", [product])], to=int(ir.DataType.INT64))
    empty = ir.node("Constant", [], {"value": ir.tensor(np.zeros(0, np.float32))}, name=f"{node.name}/no_factors")
    empty.outputs[0].name = f"{node.name}/no_factors/result"
    assert node.graph is not None
    node.graph.insert_before(node, [*made, empty])
    node.resize_inputs(4)
    node.replace_input_with(2, empty.outputs[0])
    node.replace_input_with(3, sizes)
