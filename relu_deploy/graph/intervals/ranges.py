"""Bounds that no tensor of a graph can leave for any input in a declared range: interval arithmetic, rounded outward.

A bound is a promise about the float32 model as runtimes compute it (`interval.py` says which rounding is covered), for
inputs without NaN, as long as no number inside overflows. It is not tight: how channels go together is forgotten at every
layer, so bounds grow with depth. What they prove is proven; what they do not prove may still be true.

An operator that is not in `OPERATORS` makes its results unknown, (-inf, inf), and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals import math_ops as arithmetic
from relu_deploy.graph.intervals import shape_ops as move
from relu_deploy.graph.intervals.interval import UNKNOWN, Interval
from relu_deploy.graph.intervals.operands import Operands, Shape, shape_of
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["bounds_of"]

LARGEST = {"float16": 65504.0, "float64": np.finfo(np.float64).max}


def bounds_of(model: ir.Model, input_ranges: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Array, Array]]:
    """Return the least and greatest value of every tensor that is fed to or computed in `model`'s top graph.

    input_ranges: for each input (low, high), inclusive: numbers, arrays (C,) per channel, or arrays that broadcast to the
    input. One that is missing is unbounded, or bounded by its dtype where it holds integers.
    Bounds are float64, (C,) per channel (axis 1) where the tensor has a known number of channels, else of shape ().
    """
    with np.errstate(all="ignore"):  # an infinite bound minus another is no number, and becomes no bound
        known, shapes = _walked(model, input_ranges)
    return {name: _by_channel(interval, shapes[name]) for name, interval in known.items()}


def _walked(model: ir.Model, input_ranges: Mapping[str, tuple[Any, Any]]) -> tuple[dict[str, Interval], dict[str, Shape | None]]:
    known = {str(value.name): _input(value, input_ranges.get(str(value.name))) for value in model.graph.inputs}
    shapes = {str(value.name): shape_of(value) for value in model.graph.inputs}
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    for node in model.graph:
        operands = Operands(node, known, opset)
        operator = OPERATORS.get(node.op_type) if is_standard(node) else None
        found = UNKNOWN if operator is None else operator(operands)
        results = found if isinstance(found, list) else [found, *[UNKNOWN] * (len(node.outputs) - 1)]
        for value, result in zip(node.outputs, results, strict=True):
            shapes[str(value.name)] = shape_of(value)
            known[str(value.name)] = _settled(result, shape_of(value), "" if value.dtype is None else value.dtype.numpy().name)
    return known, shapes


def _input(value: ir.Value, given: tuple[Any, Any] | None) -> Interval:
    shape = shape_of(value)
    if given is None:
        dtype: np.dtype[Any] = np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy())
        if dtype.kind not in "iub":
            return UNKNOWN
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return Interval(np.asarray(float(least)), np.asarray(float(most)))
    low, high = np.broadcast_arrays(*(np.asarray(bound, np.float64) for bound in given))
    if low.ndim == 1 and shape is not None and len(shape) > 1:
        low, high = (bound.reshape(1, -1, *(1,) * (len(shape) - 2)) for bound in (low, high))
    return _settled(Interval(low, high), shape, "")


def _settled(interval: Interval, shape: Shape | None, dtype: str) -> Interval:
    """Return `interval` with bounds that broadcast to `shape`, infinite where the dtype's numbers end."""
    if interval.low.size == 0:
        return UNKNOWN
    most = LARGEST.get(dtype, float(np.finfo(np.float32).max))
    low = np.where(interval.low >= -most, interval.low, -np.inf)
    high = np.where(interval.high <= most, interval.high, np.inf)
    interval = Interval(low, high, interval.terms)
    if low.ndim == 0:
        return interval
    if shape is None or low.ndim > len(shape):
        return interval.merged()
    interval = interval.changed(lambda bound: bound.reshape(*(1,) * (len(shape) - bound.ndim), *bound.shape))
    fits = all(size in (1, dim) for size, dim in zip(interval.low.shape, shape, strict=True))
    return interval if fits else interval.merged()


def _by_channel(interval: Interval, shape: Shape | None) -> tuple[Array, Array]:
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int):
        interval = interval.merged()
        return interval.low, interval.high
    interval = interval.merged([axis for axis in range(interval.low.ndim) if axis != 1])
    return (
        np.broadcast_to(interval.low.reshape(-1), (channels,)).copy(),
        np.broadcast_to(interval.high.reshape(-1), (channels,)).copy(),
    )


#: operator of the default domain → the interval of its first result, or a list with one for each result
OPERATORS: dict[str, Callable[[Operands], Interval | list[Interval]]] = {
    "Abs": arithmetic.absolute,
    "Add": arithmetic.add,
    "AveragePool": arithmetic.average_pool,
    "BatchNormalization": arithmetic.batch_norm,
    "Cast": arithmetic.cast,
    "Clip": arithmetic.clip,
    "Concat": move.concat,
    "Conv": arithmetic.conv,
    "ConvTranspose": arithmetic.conv,
    "Div": arithmetic.divide,
    "Dropout": move.dropout,
    "Expand": move.expand,
    "Flatten": move.reshape,
    "Gather": move.gather,
    "Gemm": arithmetic.gemm,
    "GlobalAveragePool": arithmetic.global_average,
    "GlobalMaxPool": arithmetic.max_pool,
    "HardSigmoid": arithmetic.hard_sigmoid,
    "Identity": move.same,
    "LeakyRelu": arithmetic.leaky,
    "MatMul": arithmetic.matmul,
    "Max": arithmetic.extreme,
    "MaxPool": arithmetic.max_pool,
    "Min": arithmetic.extreme,
    "Mul": arithmetic.multiply,
    "Neg": arithmetic.negative,
    "PRelu": arithmetic.leaky,
    "Pad": move.pad,
    "ReduceMax": arithmetic.reduce,
    "ReduceMean": arithmetic.reduce,
    "ReduceMin": arithmetic.reduce,
    "ReduceSum": arithmetic.reduce,
    "Relu": arithmetic.relu,
    "Reshape": move.reshape,
    "Resize": move.resize,
    "Sigmoid": arithmetic.sigmoid,
    "Slice": move.slice_,
    "Softmax": arithmetic.softmax,
    "Split": move.split,
    "Squeeze": move.squeeze,
    "Sub": arithmetic.add,
    "Sum": arithmetic.add,
    "Tanh": arithmetic.tanh,
    "Transpose": move.transpose,
    "Unsqueeze": move.squeeze,
    "Upsample": move.resize,
}
