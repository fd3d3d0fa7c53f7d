"""Products of quantized tensors: exact sums of integers, then one multiplication by the ratio of the scales."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.layers.convolution import convolve
from relu_deploy.backends.reference.ops.quantized.quantization import centered, quantize
from relu_deploy.backends.reference.registry import CONTRIB, Call, operator
from relu_deploy.backends.reference.windows import Geometry
from relu_deploy.tensors import Array

__all__ = ["convolved", "rows_and_columns"]

#: products of two numbers of 8 bits less their zero points, at most 255² each, whose sum float32 holds exactly
EXACT_TERMS = 256


def rows_and_columns(a: Array, a_zero: Array | None, b: Array, b_zero: Array | None) -> Array:
    """Return (a - a_zero) @ (b - b_zero) in float64, exact for integers of 8 bits. Zero points of rows of a, columns of b."""
    small = a.dtype.itemsize == b.dtype.itemsize == 1 and min(a.ndim, b.ndim) > 1
    kind: Any = np.float32 if small else np.float64
    left: Array = a.astype(kind)
    right: Array = b.astype(kind)
    if a_zero is not None:
        left = left - rows(a_zero).astype(kind)
    if b_zero is not None:
        right = right - b_zero.astype(kind)
    if not small:
        return np.asarray(left @ right)
    parts = [slice(start, start + EXACT_TERMS) for start in range(0, max(1, left.shape[-1]), EXACT_TERMS)]
    products = (np.asarray(left[..., part] @ right[..., part, :]).astype(np.float64) for part in parts)
    return np.asarray(reduce(np.add, products))


def rows(values: Array) -> Array:
    """Return scales or zero points of the rows of a matrix so that they broadcast to it."""
    return values.reshape(-1, 1) if values.ndim == 1 and values.size > 1 else values


@operator("MatMulInteger", keeps_types=True)
def matmul_integer(_: Call, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    return rows_and_columns(a, a_zero, b, b_zero).astype(np.int64).astype(np.int32)


@operator("QLinearMatMul", keeps_types=True)
def qlinear_matmul(_: Call, *operands: Array) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = operands
    total = rows_and_columns(a, a_zero, b, b_zero)
    factor = rows(_single(a_scale)) * _single(b_scale) / rows(_single(y_scale))
    zero = rows(y_zero) if y_zero.ndim else y_zero
    return quantize(total.astype(factor.dtype) * factor, np.ones((), factor.dtype), zero, y_zero.dtype)


def _single(scale: Array) -> Array:
    return scale if scale.dtype == np.float64 else scale.astype(np.float32)


def convolved(call: Call, x: Array, x_zero: Array | None, w: Array, w_zero: Array | None) -> Array:
    """Return the convolution of x - x_zero with w - w_zero in float64, exact for integers of 8 bits."""
    weights = centered(w, w_zero, 0)
    return convolve(
        centered(x, None if x_zero is None else x_zero.reshape(-1)[:1]),
        weights,
        Geometry.of(call, w.shape[2:]),
        call.get("group", 1),
    )


@operator("ConvInteger", keeps_types=True)
def conv_integer(call: Call, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None) -> Array:
    return convolved(call, x, x_zero, w, w_zero).astype(np.int64).astype(np.int32)


@operator("QLinearConv", keeps_types=True)
def qlinear_conv(call: Call, *operands: Any) -> Array:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = operands
    total = convolved(call, x, x_zero, w, w_zero)
    channels = (1, -1, *(1,) * (x.ndim - 2))
    if bias and bias[0] is not None:
        total = total + bias[0].astype(np.float64).reshape(channels)
    factor = (x_scale * w_scale / y_scale).reshape(channels if w_scale.size > 1 else (1,) * x.ndim)
    return quantize(total.astype(factor.dtype) * factor, np.ones((), factor.dtype), y_zero, y_zero.dtype)


@operator("QLinearConv", domain=CONTRIB, keeps_types=True)
def qlinear_conv_of_any_layout(call: Call, *operands: Any) -> Array:
    if not call.get("channels_last", 0):
        return qlinear_conv(call, *operands)  # type: ignore[no-any-return]
    first = np.moveaxis(operands[0], -1, 1)
    return np.moveaxis(qlinear_conv(call, first, *operands[1:]), 1, -1)
