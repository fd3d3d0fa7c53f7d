"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, and the arithmetic that quantized operators share."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.casting import NARROW_INTEGERS, cast_to
from relu_deploy.backends.reference.registry import CONTRIB, Call, operator
from relu_deploy.backends.reference.types import dtype_of, is_float
from relu_deploy.tensors import Array

__all__ = ["centered", "dequantize", "quantize", "spread"]


def spread(values: Array, x: Array, axis: int, block: int = 0) -> Array:
    """Return scales or zero points in a shape that broadcasts to `x`: of the tensor, of `axis`, or of blocks along it."""
    if values.size == 1 and values.ndim <= 1:
        return values.reshape(())
    axis = axis % x.ndim
    if values.ndim == 1 and not (block and x.ndim == 1):
        return values.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    length = x.shape[axis]
    each = block or -(-length // values.shape[axis])
    return np.take(values, np.arange(length) // each, axis)


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the smallest and largest value of an integer type, those of fewer than 8 bits included."""
    if dtype.name in NARROW_INTEGERS:
        return NARROW_INTEGERS[dtype.name]
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def quantize(x: Array, scale: Array, zero: Any, dtype: np.dtype[Any]) -> Array:
    """Return saturate(round(x / scale) + zero) in an integer type; halves are rounded to even."""
    low, high = limits(dtype)
    # Levels of up to 16 bits are exact in float32, and larger ones are clipped.
    kind = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    quotients = np.asarray(x / scale)
    levels = np.asarray(np.rint(quotients, out=quotients)).astype(kind, copy=False)
    offset = np.zeros((), kind) if zero is None else np.asarray(zero).astype(np.int64).astype(kind)
    if offset.any():
        levels = np.asarray(levels + offset)
    unknown = np.isnan(levels)
    if unknown.any():
        # A NaN has no level: it is taken as the zero point, where a conversion in C would leave it undefined.
        levels = np.where(unknown, offset, levels)
    levels = np.minimum(np.maximum(levels, kind.type(low)), kind.type(high))
    return levels.astype(np.int64).astype(dtype) if dtype.name in NARROW_INTEGERS or dtype.itemsize > 2 else levels.astype(dtype)


def centered(x: Array, zero: Array | None, axis: int = 1) -> Array:
    """Return x - zero exactly, in float64 (integers of up to 32 bits)."""
    wide = _exact(x)
    return wide if zero is None else wide - spread(_exact(zero), x, axis)


def _exact(x: Array) -> Array:
    if x.dtype.kind not in "iufb" and is_float(x):
        return x.astype(np.float32).astype(np.float64)
    return x.astype(np.int32).astype(np.float64) if x.dtype.name in NARROW_INTEGERS else x.astype(np.float64)


def dequantize(x: Array, scale: Array, zero: Array | None, axis: int = 1, block: int = 0) -> Array:
    """Return (x - zero) * scale in the type of `scale`; the difference is exact."""
    # An array of its own, which is computed in place.
    exact = np.asarray(_exact(x))
    if zero is not None and zero.any():
        exact -= spread(_exact(zero), x, axis, block)
    exact = exact.astype(scale.dtype, copy=False)
    exact *= spread(scale, x, axis, block)
    return exact


@operator("QuantizeLinear", keeps_types=True)
@operator("QuantizeLinear", domain=CONTRIB, keeps_types=True)
def quantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    dtype = zero.dtype if zero is not None else dtype_of(int(call.get("output_dtype", 0) or 2))
    # The division is done in the type of the scale, or the one that the node names: in a float64 evaluation too, because the
    # rounding of the quotient decides what is halfway between two levels.
    precision = dtype_of(int(call.get("precision", 0) or 1)) if call.wide else call.dtype("precision") or scale.dtype
    kind = np.dtype(np.float32) if precision.itemsize < 4 else precision
    x, scale = x.astype(precision).astype(kind), scale.astype(precision).astype(kind)
    if dtype.name == "float8_e8m0fnu" or "float" in dtype.name:
        offset = 0 if zero is None else spread(_exact(zero), x, axis, block)
        y = np.asarray(x / spread(scale, x, axis, block) + offset)
        return cast_to(y, dtype, wide=False, saturate=bool(call.get("saturate", 1)))
    return quantize(x, spread(scale, x, axis, block), None if zero is None else spread(zero, x, axis, block), dtype)


@operator("DequantizeLinear", keeps_types=True)
@operator("DequantizeLinear", domain=CONTRIB, keeps_types=True)
def dequantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    dtype = call.dtype("output_dtype") or scale.dtype
    if scale.dtype.itemsize < 4:
        scale = scale.astype(np.float32)
    return dequantize(x, scale, zero, call.get("axis", 1), call.get("block_size", 0)).astype(dtype)


@operator("DynamicQuantizeLinear", keeps_types=True)
def dynamic_quantize_linear(call: Call, x: Array) -> tuple[Array, Array, Array]:
    levels, scale, zero = dynamically_quantized(x)
    return levels, scale.astype(np.float64) if call.wide else scale, zero


def dynamically_quantized(x: Array) -> tuple[Array, Array, Array]:
    """Return `x` in 8 unsigned bits over its own range, widened to contain 0, with scale and zero point.

    The operator is defined in float32, and is computed in it whatever the type of `x`: the rounding of the quotients decides
    what is halfway between two levels.
    """
    x = x.astype(np.float32)
    low, high = min(x.min(initial=0), np.float32(0)), max(x.max(initial=0), np.float32(0))
    scale = np.asarray((high - low) / np.float32(255) if high > low else np.float32(1))
    zero = np.asarray(np.clip(np.rint((0 - low) / scale), 0, 255)).astype(np.uint8)
    return quantize(x, scale, zero, np.dtype(np.uint8)), scale, zero
