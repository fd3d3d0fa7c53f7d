"""Intervals through operators that compute: sums of products, means, and functions of one number, rounded outward.

Each function takes one node's operands and returns the interval of its first result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from relu_deploy.graph.intervals.interval import UNKNOWN, Interval, exactly, rounded_sum, weighted
from relu_deploy.graph.intervals.operands import Operands, Shape
from relu_deploy.tensors import Array

__all__ = [
    "absolute",
    "add",
    "average_pool",
    "batch_norm",
    "cast",
    "clip",
    "conv",
    "divide",
    "extreme",
    "gemm",
    "global_average",
    "hard_sigmoid",
    "leaky",
    "matmul",
    "max_pool",
    "multiply",
    "negative",
    "reduce",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]

#: absolute error granted to sigmoid, tanh and their like, which runtimes approximate each in its own way
APPROXIMATE = 1e-5


# ---------------------------------------------------------------- sums of products


def conv(operands: Operands) -> Interval:
    """Return the interval of a Conv or ConvTranspose with constant weights, whatever its strides and dilations."""
    weights, x, transposed = operands.constant(1), operands.interval(), operands.node.op_type == "ConvTranspose"
    if weights is None or not operands.is_float:
        return UNKNOWN
    groups, rank = int(operands.attribute("group", 1)), weights.ndim
    padded = any(operands.attribute("pads", ())) or str(operands.attribute("auto_pad", "NOTSET")) not in ("NOTSET", "VALID")
    if padded or transposed:
        # A window over the border sees zeros there; a transposed one meets only some of the kernel's places.
        x = x.joined(0.0)
    if transposed:
        grouped = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1).swapaxes(1, 2)
    else:
        grouped = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    inputs = groups * grouped.shape[2]
    x = _channels_only(x, inputs)
    bias = operands.interval(2, default=0.0)
    outputs = groups * grouped.shape[1]
    per_bias = bias.changed(lambda bound: np.broadcast_to(bound.reshape(-1), (outputs,)))
    parts = []
    for group in range(groups):
        mine = slice(group * grouped.shape[2], (group + 1) * grouped.shape[2])
        own = slice(group * grouped.shape[1], (group + 1) * grouped.shape[1])
        piece = x.changed(lambda bound, mine=mine: bound[mine])  # type: ignore[misc]
        addend = per_bias.changed(lambda bound, own=own: bound[own])  # type: ignore[misc]
        parts.append(weighted(piece, grouped[group], addend, operands.unit))
    shape = (1, outputs, *(1,) * (rank - 2))
    ends = [np.concatenate([part.ends[end] for part in parts]).reshape(shape) for end in (0, 1)]
    return Interval(ends[0], ends[1], parts[0].terms)


def _channels_only(x: Interval, channels: int) -> Interval:
    """Return the bounds of each channel, of shape (channels,)."""
    x = x.merged([axis for axis in range(x.low.ndim) if axis != 1])
    return x.changed(lambda bound: np.broadcast_to(bound.reshape(-1), (channels,)))


def gemm(operands: Operands) -> Interval:
    weights, x = operands.constant(1), operands.interval()
    if weights is None or operands.attribute("transA", 0) or not operands.is_float:
        return UNKNOWN
    alpha, beta = float(operands.attribute("alpha", 1.0)), float(operands.attribute("beta", 1.0))
    matrix = weights if operands.attribute("transB", 0) else weights.T
    bias = operands.interval(2, default=0.0).times(exactly(np.asarray(beta)))
    scaled = matrix if alpha == 1 else matrix.astype(np.float64) * alpha
    return weighted(_features(x, scaled.shape[1]), scaled, bias, operands.unit)


def _features(x: Interval, features: int) -> Interval:
    """Return bounds whose last axis has one number for each feature."""
    return x.changed(lambda bound: np.broadcast_to(bound, (*bound.shape[:-1], features)))


def matmul(operands: Operands) -> Interval:
    """Return the interval of x @ weights; where both sides vary, of the largest sum that their sizes allow."""
    weights, x, shape = operands.constant(1), operands.interval(), operands.shape()
    if not operands.is_float:
        return UNKNOWN
    if weights is not None and weights.ndim == 2 and shape is not None and len(shape) > 1:
        return weighted(_features(x, weights.shape[0]), weights.T, exactly(np.asarray(0.0)), operands.unit)
    length = shape[-1] if shape else None
    if not isinstance(length, int):
        return UNKNOWN
    product = x.merged().times(operands.interval(1).merged())
    true = product.changed(lambda bound: bound * length)
    return rounded_sum(true, length * product.magnitude, length, operands.unit)


def batch_norm(operands: Operands) -> Interval:
    constants = [operands.constant(position) for position in range(1, 5)]
    scale, shift, mean, variance = (None if array is None else array.astype(np.float64) for array in constants)
    if scale is None or shift is None or mean is None or variance is None or operands.attribute("training_mode", 0):
        return UNKNOWN
    spread = variance + float(operands.attribute("epsilon", 1e-5))
    if spread.min() <= 0:
        return UNKNOWN
    factor = scale / np.sqrt(spread)
    x = _channels_only(operands.interval(), len(factor))
    product = x.changed(lambda bound: bound - mean).times(exactly(factor))
    magnitude = np.where(factor == 0, 0.0, np.abs(factor) * (x.magnitude + np.abs(mean)))
    true = Interval(product.low + shift, product.high + shift)
    total = rounded_sum(true, magnitude + np.abs(shift), x.terms, operands.unit)
    # A channel whose scale is 0 is its shift, to the bit: no other number enters.
    total = Interval(np.where(magnitude == 0, shift, total.low), np.where(magnitude == 0, shift, total.high), total.terms)
    shape = operands.shape()
    rank = len(shape) if shape is not None else 4
    return total.changed(lambda bound: bound.reshape(1, -1, *(1,) * (rank - 2)))


def add(operands: Operands) -> Interval:
    """Return the interval of an Add, Sub, or a Sum of several."""
    if not operands.is_float:
        return UNKNOWN
    total = operands.interval()
    magnitude = total.magnitude
    for position in range(1, len(operands)):
        other = operands.interval(position)
        if operands.node.op_type == "Sub":
            other = Interval(-other.high, -other.low, other.terms)
        magnitude = magnitude + other.magnitude
        total = Interval(total.low + other.low, total.high + other.high, max(total.terms, other.terms))
    return rounded_sum(total, magnitude, total.terms + len(operands), operands.unit)


def multiply(operands: Operands) -> Interval:
    if not operands.is_float:
        return UNKNOWN
    return operands.interval().times(operands.interval(1)).rounded(operands.unit)


def divide(operands: Operands) -> Interval:
    divisor = operands.interval(1)
    if not operands.is_float or bool(((divisor.low <= 0) & (divisor.high >= 0)).any()):
        return UNKNOWN
    inverse = Interval(1 / divisor.high, 1 / divisor.low, divisor.terms)
    return operands.interval().times(inverse).rounded(operands.unit)


# ---------------------------------------------------------------- pools and means


def max_pool(operands: Operands) -> Interval:
    # Its border is never the maximum: ONNX pads with the lowest number there is.
    x = operands.interval()
    return x.merged([axis for axis in range(x.low.ndim) if axis > 1])


def average_pool(operands: Operands) -> Interval:
    x = operands.interval()
    x = x.merged([axis for axis in range(x.low.ndim) if axis > 1])
    padded = any(operands.attribute("pads", ())) or str(operands.attribute("auto_pad", "NOTSET")) not in ("NOTSET", "VALID")
    if padded or operands.attribute("ceil_mode", 0):
        x = x.joined(0.0)
    return _mean(x, prod(operands.attribute("kernel_shape", ())), operands.unit)


def global_average(operands: Operands) -> Interval:
    x, shape = operands.interval(), operands.shape()
    x = x.merged([axis for axis in range(x.low.ndim) if axis > 1])
    return _mean(x, _count(shape, None if shape is None else list(range(2, len(shape)))), operands.unit)


def reduce(operands: Operands) -> Interval:
    """Return the interval of ReduceMean, ReduceSum, ReduceMax or ReduceMin."""
    x, shape, axes, kind = operands.interval(), operands.shape(), operands.integers(1, "axes"), operands.node.op_type
    if not operands.is_float or shape is None or (axes is None and operands.has(1)):
        return UNKNOWN
    if axes is None:
        axes = [] if operands.attribute("noop_with_empty_axes", 0) else list(range(len(shape)))
    axes = [axis % len(shape) for axis in axes]
    count = _count(shape, axes)
    x = x.merged(axes)
    if kind == "ReduceSum":
        x = UNKNOWN if count is None else rounded_sum(x.changed(lambda b: b * count), count * x.magnitude, count, operands.unit)
    elif kind == "ReduceMean":
        x = _mean(x, count, operands.unit)
    if x.low.ndim and not operands.attribute("keepdims", 1):
        x = x.changed(lambda bound: bound.squeeze(tuple(axes)))
    return x


def _count(shape: Shape | None, axes: Sequence[int] | None) -> int | None:
    sizes = None if shape is None or axes is None else [shape[axis] for axis in axes]
    whole = [size for size in sizes or () if isinstance(size, int)]
    return prod(whole) if sizes is not None and len(whole) == len(sizes) else None


def _mean(x: Interval, count: int | None, unit: float) -> Interval:
    """Return the interval of the mean of `count` numbers in `x`. Of an unknown number of them only the sign is sure."""
    if count is None:
        return Interval(np.where(x.low >= 0, 0.0, -np.inf), np.where(x.high <= 0, 0.0, np.inf))
    mean = rounded_sum(x, x.magnitude, count, unit)
    # Means of non-negative numbers are not negative, however they are rounded.
    low, high = (
        np.where(x.low >= 0, np.maximum(mean.low, 0), mean.low),
        np.where(x.high <= 0, np.minimum(mean.high, 0), mean.high),
    )
    return Interval(low, high, max(x.terms, count))


# ---------------------------------------------------------------- one number at a time


def relu(operands: Operands) -> Interval:
    return operands.interval().changed(lambda bound: np.maximum(bound, 0))


def clip(operands: Operands) -> Interval:
    low, high = operands.attribute("min", -np.inf), operands.attribute("max", np.inf)
    least, most = operands.interval(1, default=float(low)), operands.interval(2, default=float(high))
    x = operands.interval()
    return Interval(
        np.minimum(np.maximum(x.low, least.low), most.low), np.minimum(np.maximum(x.high, least.high), most.high), x.terms
    )


def extreme(operands: Operands) -> Interval:
    choose = np.maximum if operands.node.op_type == "Max" else np.minimum
    parts = [operands.interval(position) for position in range(len(operands))]
    result = parts[0]
    for part in parts[1:]:
        result = Interval(choose(result.low, part.low), choose(result.high, part.high), max(result.terms, part.terms))
    return result


def leaky(operands: Operands) -> Interval:
    """Return the interval of a LeakyRelu or PRelu: the positive part, and the negative part times the slope."""
    prelu = operands.node.op_type == "PRelu"
    slope = operands.interval(1) if prelu else exactly(np.asarray(float(operands.attribute("alpha", 0.01))))
    x = operands.interval()
    below = x.changed(lambda bound: np.minimum(bound, 0)).times(slope).rounded(operands.unit)
    above = x.changed(lambda bound: np.maximum(bound, 0))
    # Only one part is not 0 at a time, so the bounds of the sum are those of the parts where x has one sign.
    both = below.joined(0.0).joined(above.joined(0.0))
    low = np.where(x.low >= 0, above.low, np.where(x.high <= 0, below.low, both.low))
    high = np.where(x.low >= 0, above.high, np.where(x.high <= 0, below.high, both.high))
    return Interval(low, high, x.terms)


def negative(operands: Operands) -> Interval:
    x = operands.interval()
    return Interval(-x.high, -x.low, x.terms)


def absolute(operands: Operands) -> Interval:
    x = operands.interval()
    return Interval(np.maximum(np.maximum(x.low, -x.high), 0), x.magnitude, x.terms)


def _smooth(function: Callable[[Array], Array], least: float, most: float) -> Callable[[Operands], Interval]:
    """Return the operator of an increasing `function` with values in [least, most] that runtimes approximate."""

    def operator(operands: Operands) -> Interval:
        with np.errstate(over="ignore"):
            x = operands.interval().changed(function)
        x = x.widened(max(APPROXIMATE, 8 * operands.unit) * (1 + np.where(np.isinf(x.magnitude), 0, x.magnitude)))
        return x.changed(lambda bound: np.clip(bound, least, most))

    return operator


def hard_sigmoid(operands: Operands) -> Interval:
    alpha, beta = (float(operands.attribute(name, default)) for name, default in (("alpha", 0.2), ("beta", 0.5)))
    if alpha < 0:
        return UNKNOWN.changed(lambda bound: np.clip(bound, 0, 1))
    return _smooth(lambda x: np.clip(alpha * x + beta, 0, 1), 0, 1)(operands)


def softmax(operands: Operands) -> Interval:
    most = 1 + max(APPROXIMATE, 8 * operands.unit)
    return Interval(np.asarray(0.0), np.asarray(most))


def cast(operands: Operands) -> Interval:
    x = operands.interval()
    if operands.is_float:
        # Every dtype's own unit is an upper bound of what a wider one would lose.
        return x.rounded(operands.unit)
    if operands.dtype == "bool":
        return Interval(np.asarray(0.0), np.asarray(1.0))
    dtype = np.dtype(operands.dtype)
    inside = dtype.kind in "iu" and x.low.min() >= np.iinfo(dtype).min and x.high.max() <= np.iinfo(dtype).max
    return x.changed(np.trunc) if inside else UNKNOWN


def _logistic(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


sigmoid = _smooth(_logistic, 0.0, 1.0 + APPROXIMATE)
tanh = _smooth(np.tanh, -1.0 - APPROXIMATE, 1.0 + APPROXIMATE)
