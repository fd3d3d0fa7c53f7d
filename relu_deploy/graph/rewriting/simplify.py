"""Simplify a graph: fold batch norms into the kernel before them, remove copies, lift constants to initializers.

A BatchNormalization is one multiplication and one addition a channel, with factor = scale / sqrt(variance + epsilon):

    kernel(x) · factor + (shift - mean · factor)  =  kernel'(x)     weights' = weights · factor of their output channel
                                                                    bias'    = (bias - mean) · factor + shift

in float64, and rounded once to the weights' own dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.intervals.operands import constant_of, shape_of
from relu_deploy.graph.model import opset_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_batch_norms", "lift_constants", "pool_spatial_means"]

KERNELS = ("Conv", "ConvTranspose", "Gemm")


def fold_batch_norms(model: ir.Model) -> ir.Model:
    """Return `model` with each BatchNormalization in the Conv, ConvTranspose or Gemm before it, where nothing else reads that one.

    The kernel keeps its node's name and gives the BatchNormalization's tensor, so that the Relu behind reads what it read.
    Identity, Dropout (in inference) and Cast to the same type are removed too, Constant nodes become initializers.
    A BatchNormalization that is not behind such a kernel, or trains, stays.
    """
    folded = lift_constants(model)
    for node in list(folded.graph):
        if _changes_nothing(node, opset_of(folded)):
            _leave_out(node)
    for node in list(folded.graph):
        numbers = _norm(node, opset_of(folded))
        kernel = _kernel_before(node) if numbers is not None else None
        if kernel is None or numbers is None:
            continue
        folded_into = _scaled(kernel, *numbers)
        if folded_into is None:
            continue
        for position, array in folded_into.items():
            _set_constant(kernel, position, array)
        if kernel.op_type == "Gemm":
            kernel.attributes.pop("beta", None)
        _take_over(kernel, node)
    return folded


def lift_constants(model: ir.Model) -> ir.Model:
    """Return a copy of `model` (weights shared) whose Constant nodes are initializers; those that are outputs stay."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    lifted = model.clone()
    # The pass knows no sparse constants.
    sparse = any("sparse_value" in node.attributes for node in lifted.graph if node.op_type == "Constant")
    LiftConstantsToInitializersPass(lift_all_constants=not sparse, size_limit=0)(lifted)
    return lifted


def pool_spatial_means(model: ir.Model) -> ir.Model:
    """Return `model` with each ReduceMean over height and width as the GlobalAveragePool that quantizers and TensorRT know.

    Node and tensor names stay. Where the two axes are dropped, a Flatten behind the pool drops them.
    """
    import onnx_ir as ir

    pooled = lift_constants(model)
    for node in list(pooled.graph):
        x = node.inputs[0] if node.op_type == "ReduceMean" and node.domain == "" else None
        if (
            x is None
            or x.dtype is None
            or x.dtype.name not in ("FLOAT", "FLOAT16", "DOUBLE")
            or not _is_spatial(node, shape_of(x))
        ):
            continue
        y, name = node.outputs[0], str(node.name)
        keeps = _attribute(node, "keepdims", 1)
        pool = ir.Node("", "GlobalAveragePool", [x], name=name, metadata_props=dict(node.metadata_props))
        last = pool
        if not keeps:
            flat = ir.Node("", "Flatten", [pool.outputs[0]], name=f"{name}/flatten", metadata_props=dict(node.metadata_props))
            pool.outputs[0].name, pool.outputs[0].type = f"{y.name}/pooled", y.type
            if x.shape is not None:
                pool.outputs[0].shape = ir.Shape([*x.shape[:2], 1, 1])
            last = flat
        pooled.graph.insert_before(node, [pool] if last is pool else [pool, last])
        _take_over(last, node)
    return pooled


# ---------------------------------------------------------------- batch norms


def _norm(node: ir.Node, opset: int) -> tuple[Array, Array, Array] | None:
    """Return factor, mean and shift of a BatchNormalization in inference, each (C,) in float64; None for any other node."""
    if node.op_type != "BatchNormalization" or node.domain != "":
        return None
    unused = all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])
    trains = _attribute(node, "training_mode", 0) or (opset < 7 and not _attribute(node, "is_test", 0))
    numbers = [constant_of(value) if _is_fixed(value) else None for value in node.inputs[1:5]]
    if trains or not unused or not _attribute(node, "spatial", 1) or any(array is None for array in numbers):
        return None
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in numbers)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
    return (factor, mean, shift) if np.isfinite(factor).all() else None


def _kernel_before(node: ir.Node) -> ir.Node | None:
    """Return the kernel with constant weights whose result only `node` reads, None where there is none."""
    made = node.inputs[0]
    kernel = None if made is None else made.producer()
    if made is None or kernel is None or kernel.op_type not in KERNELS or kernel.domain != "":
        return None
    alone = len(made.uses()) == 1 and not made.is_graph_output()
    fixed = all(_is_fixed(value) for value in kernel.inputs[1:] if value is not None)
    return kernel if alone and fixed and kernel.graph is node.graph else None


def _scaled(kernel: ir.Node, factor: Array, mean: Array, shift: Array) -> dict[int, Array] | None:
    """Return the weights (by their position 1) and bias (2) with the batch norm in them; None where the shapes do not fit."""
    weights, bias = constant_of(kernel.inputs[1]), constant_of(kernel.inputs[2]) if len(kernel.inputs) > 2 else None
    if weights is None or weights.ndim < 2:
        return None
    wide = weights.astype(np.float64)
    added = np.zeros(1) if bias is None else bias.astype(np.float64)
    if kernel.op_type == "Gemm":
        columns = not _attribute(kernel, "transB", 0)
        channels = weights.shape[1 if columns else 0]
        scaled = wide * (factor if columns else factor[:, None]) if len(factor) == channels else None
        added = added * _attribute(kernel, "beta", 1.0)
    elif kernel.op_type == "Conv":
        scaled = wide * factor.reshape(-1, *(1,) * (wide.ndim - 1)) if len(factor) == weights.shape[0] else None
    else:
        # (C, M / groups, *kernel): each group of inputs makes its own part of the outputs.
        groups = _attribute(kernel, "group", 1)
        parts = wide.reshape(groups, -1, *weights.shape[1:])
        fits = len(factor) == groups * weights.shape[1]
        spread = factor.reshape(groups, 1, -1, *(1,) * (wide.ndim - 2)) if fits else None
        scaled = None if spread is None else (parts * spread).reshape(weights.shape)
    if scaled is None:
        return None
    return {1: scaled.astype(weights.dtype), 2: ((added - mean) * factor + shift).astype(weights.dtype)}


def _set_constant(node: ir.Node, position: int, array: Array) -> None:
    """Make `array` the weight that `node` reads there: in its old place where nothing else reads it, else in a new one."""
    import onnx_ir as ir

    graph, old = node.graph, node.inputs[position] if position < len(node.inputs) else None
    if old is not None and len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
        old.const_value, old.shape = ir.tensor(array, name=old.name), ir.Shape(array.shape)
        return
    name = str(old.name) if old is not None else f"{node.name}.bias"
    taken = {str(value.name) for made in graph.all_nodes() for value in made.outputs} | set(graph.initializers)  # type: ignore[union-attr]
    taken |= {str(value.name) for value in graph.inputs}  # type: ignore[union-attr]
    if name in taken:
        name = next(other for count in range(len(taken) + 1) if (other := f"{node.name}/{name}_{count}") not in taken)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
    value.const_value = ir.tensor(array, name=name)
    graph.register_initializer(value)  # type: ignore[union-attr]
    node.resize_inputs(max(len(node.inputs), position + 1))
    node.replace_input_with(position, value)


# ---------------------------------------------------------------- nodes that go


def _changes_nothing(node: ir.Node, opset: int) -> bool:
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Cast":
        return node.inputs[0].dtype is not None and node.attributes["to"].as_int() == node.inputs[0].dtype
    if node.op_type == "Dropout":
        flag = node.inputs[2] if len(node.inputs) > 2 else None
        known = constant_of(flag)
        trains = (flag is not None and (known is None or bool(known))) or (opset < 7 and not _attribute(node, "is_test", 0))
        return not trains and all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])
    return node.op_type == "Identity"


def _leave_out(node: ir.Node) -> None:
    """Remove `node`, whose readers read its input instead; where it gives a graph output, what makes the input gives it."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or (y.is_graph_output() and (x.producer() is None or x.is_graph_output())):
        return
    name = y.name if y.is_graph_output() else x.name
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]
    x.name = name


def _take_over(maker: ir.Node, node: ir.Node) -> None:
    """Let `maker` give the tensor of `node`, name and all, and remove `node` with the weights that only it read."""
    made, tensor, graph = maker.outputs[0], node.outputs[0], node.graph
    weights = [value for value in node.inputs if value is not None and value.is_initializer()]
    tensor.replace_all_uses_with(made, replace_graph_outputs=True)
    made.type, made.shape, name = tensor.type, tensor.shape, tensor.name
    made.metadata_props.update(tensor.metadata_props)
    graph.remove(node, safe=True)  # type: ignore[union-attr]
    made.name = name
    for value in weights:
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            graph.initializers.pop(str(value.name), None)  # type: ignore[union-attr]


# ---------------------------------------------------------------- reading nodes


def _is_spatial(node: ir.Node, shape: Any) -> bool:
    """Return whether the axes of a ReduceMean are the last two of four."""
    if shape is None or len(shape) != 4:
        return False
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else _attribute(node, "axes", None)
    return axes is not None and sorted(int(axis) % 4 for axis in np.asarray(axes).reshape(-1)) == [2, 3]


def _is_fixed(value: ir.Value | None) -> bool:
    """Return whether `value` is a constant that cannot be overridden by a graph input, as old files allow for weights."""
    return value is not None and constant_of(value) is not None and not value.is_graph_input()


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value
