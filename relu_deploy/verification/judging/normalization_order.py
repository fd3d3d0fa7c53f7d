"""How far the order of its two sums moves a normalization: the mean, and the variance around it.

Both are summed in float32 one term after the other. The error of the mean moves every element: beside a mean of 1000 the
numbers are known to 6e-5, and the sum of 4096 of them loses several times as much. A runtime that computes the variance in one
pass, as the mean of the squares less the square of the mean, loses far more where the mean is large: its answer differs.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NORMALIZATIONS", "normalized_terms", "shift_of_order"]

NORMALIZATIONS = (
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MeanVarianceNormalization",
    "SkipLayerNormalization",
)


def normalized_terms(node: ir.Node, x: Array) -> int:
    """Return how many elements of `x` one mean of a normalization is taken of."""
    return prod(x.shape[axis] for axis in _axes(node, x)) // (_groups(node) or 1) if x.ndim > 1 else 0


def shift_of_order(node: ir.Node, x: Array, opset: int) -> Array:
    """Return by how much sums in float32, the largest terms first, move the result of a normalization of `x`, in its shape."""
    axes, groups = _axes(node, x), _groups(node)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    moved = np.transpose(np.asarray(x, np.float64), (*kept, *axes))
    rows = moved.reshape(x.shape[0], groups, -1) if groups else moved.reshape(*(x.shape[axis] for axis in kept), -1)
    terms, epsilon = rows.shape[-1], _epsilon(node)
    narrow = rows.astype(np.float32) - (_summed(rows) / np.float32(terms))
    wide = rows - rows.mean(-1, keepdims=True)
    in_order = narrow / np.sqrt(_summed(np.square(narrow)) / np.float32(terms) + np.float32(epsilon))
    shift = in_order - wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + epsilon)
    return np.transpose(shift.reshape(moved.shape), np.argsort((*kept, *axes))) * _scale(node, x, opset)


def _summed(rows: Array) -> Array:
    order = np.argsort(-np.abs(rows), axis=-1, kind="stable")
    terms = np.take_along_axis(rows, order, -1).astype(np.float32)
    return np.asarray(np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1:])


def _axes(node: ir.Node, x: Array) -> tuple[int, ...]:
    if node.op_type in ("LayerNormalization", "SkipLayerNormalization"):
        return tuple(range(int(_number(node, "axis", -1)) % x.ndim, x.ndim))
    if node.op_type == "MeanVarianceNormalization":
        axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else (0, 2, 3)
        return tuple(int(axis) % x.ndim for axis in axes)
    return tuple(range(1 if node.op_type == "GroupNormalization" else 2, x.ndim))


def _groups(node: ir.Node) -> int:
    return int(_number(node, "num_groups", 1)) if node.op_type == "GroupNormalization" else 0


def _epsilon(node: ir.Node) -> float:
    defaults = {"MeanVarianceNormalization": 0.0, "SkipLayerNormalization": 1e-12}
    return _number(node, "epsilon", defaults.get(node.op_type, 1e-5))


def _number(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes[name].value) if name in node.attributes else default


def _scale(node: ir.Node, x: Array, opset: int) -> Array:
    """Return the factor of the normalized numbers, which broadcasts to `x`; 1 where it is no constant."""
    place = 2 if node.op_type == "SkipLayerNormalization" else 1
    scale = constant_of(node.inputs[place]) if len(node.inputs) > place else None
    if scale is None or node.op_type in ("LayerNormalization", "SkipLayerNormalization"):
        return np.ones(()) if scale is None else np.asarray(scale, np.float64)
    per_group = node.op_type == "GroupNormalization" and opset < 21
    channels = np.repeat(scale, x.shape[1] // _groups(node)) if per_group else scale
    return np.asarray(channels, np.float64).reshape(1, -1, *(1,) * (x.ndim - 2))
