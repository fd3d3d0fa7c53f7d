"""Puts the normalization of pixels before a finished graph, so that it takes uint8 pictures (N, H, W, C)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InternalError, UsageError
from relu_deploy.graph.subgraph import extract_subgraph
from relu_deploy.preprocessing.apply import normalize
from relu_deploy.preprocessing.description import Preprocess
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["embed_normalization"]

#: element types of an input that can be computed from pixels
FLOATS = ("float16", "float32", "float64")
#: largest error of the embedded normalization, in gray levels
MOST_LEVELS = 0.01


def embed_normalization(model: ir.Model, steps: Preprocess) -> ir.Model:
    """Let the graph take RGB or gray uint8 (N, H, W, C) and reorder, scale, normalize and transpose it.

    The new nodes are evaluated on every gray level and compared with `normalize`.

    Args:
        model: A graph with one picture input, modified in place. The name of its input is kept.
        steps: The preprocessing, with the layout, dtype and channels of that input.

    Raises:
        UsageError: If the graph has another input.
    """
    import onnx_ir as ir

    if len(model.graph.inputs) != 1:
        raise UsageError(f"--embed-preprocess needs one picture input, the graph has {len(model.graph.inputs)}", "leave it out")
    old = model.graph.inputs[0]
    shape = old.shape
    if shape is None or len(shape) != 4 or steps.dtype not in FLOATS:
        raise UsageError(
            f"--embed-preprocess needs a floating-point picture input of 4 dimensions, not {old.name!r}", "leave it out"
        )
    name = str(old.name)
    dims = list(shape) if steps.layout == "NHWC" else [shape[0], shape[2], shape[3], shape[1]]
    pixels = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(dims))
    taken = {value.name for node in model.graph for value in node.outputs} | set(model.graph.initializers) | {name}
    prefix = f"{name}/preprocess"
    while any(str(one).startswith(prefix) for one in taken):
        prefix += "_"
    nodes = _nodes(model, pixels, steps, prefix)
    result = nodes[-1].outputs[0]
    result.type, result.shape = old.type, old.shape
    old.name = f"{prefix}/replaced"
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.inputs[0] = pixels
    model.graph.sort()
    _check(model, name, str(result.name), steps)
    return model


def _nodes(model: ir.Model, pixels: ir.Value, steps: Preprocess, prefix: str) -> list[ir.Node]:
    """Insert the nodes at the start of the graph and return them, the last of which makes the graph's former input."""
    import onnx_ir as ir

    mean, std = (np.asarray(one, np.float64) for one in (steps.mean, steps.std))
    axes = (1, 1, 1, -1) if steps.layout == "NHWC" else (1, -1, 1, 1)
    nodes: list[ir.Node] = []

    def append(operator: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=f"{prefix}/{operator}{len(nodes)}")
        node.outputs[0].name = f"{prefix}/{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    value = append("Cast", [pixels], to=int(ir.DataType.FLOAT))
    if steps.color == "BGR":
        value = append("Gather", [value, _constant(model, f"{prefix}/order", np.array([2, 1, 0], np.int64))], axis=3)
    if steps.layout == "NCHW":
        value = append("Transpose", [value], perm=[0, 3, 1, 2])
    # One product and one sum, each constant rounded once from float64.
    for operator, suffix, numbers in (("Mul", "factor", steps.scale / std), ("Add", "shift", -mean / std)):
        constant = _constant(model, f"{prefix}/{suffix}", numbers.astype(np.float32).reshape(axes))
        value = append(operator, [value, constant])
    if steps.dtype != "float32":
        append("Cast", [value], to=int(getattr(ir.DataType, {"float16": "FLOAT16", "float64": "DOUBLE"}[steps.dtype])))
    model.graph.insert_before(model.graph[0], nodes) if len(model.graph) else model.graph.extend(nodes)
    return nodes


def _constant(model: ir.Model, name: str, numbers: Array) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _check(model: ir.Model, pixels: str, result: str, steps: Preprocess) -> None:
    """Compare the new nodes with `normalize` on every gray level of every channel."""
    from relu_deploy.backends.reference.evaluator import Evaluator

    readers = {node.name for node, _ in model.graph.inputs[0].uses()}
    levels = np.arange(256, dtype=np.uint8)
    count = len(steps.mean)
    # Each channel in another order, so that exchanged channels show.
    every = np.stack([np.roll(levels, 37 * channel) for channel in range(count)], -1).reshape(1, 16, 16, count)
    part = extract_subgraph(model, [pixels], [result])
    found = Evaluator(part, wide=False).run({pixels: every})[result]
    expected = normalize(every, steps)
    level = steps.scale / np.asarray(steps.std).min()
    allowed = abs(level) * MOST_LEVELS + 4 * float(np.finfo(steps.dtype).eps) * float(np.abs(expected).max())
    if len(readers) != 1 or found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=allowed):
        raise InternalError("the embedded preprocessing does not compute what the manifest describes", "report it")
