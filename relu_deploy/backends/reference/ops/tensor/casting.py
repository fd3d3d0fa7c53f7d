"""Conversion between types: Cast, CastLike, BitCast and the storage formats of 8 bits and fewer."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import as_text, dtype_of, is_float, widened_dtype
from relu_deploy.tensors import Array

#: smallest and largest value of the integers of fewer than 8 bits
NARROW_INTEGERS = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}


@operator("Cast", keeps_types=True)
def cast(call: Call, x: Array) -> Array:
    to = call.get("to")
    if isinstance(to, str):  # version 1 has the name of the type
        import onnx

        to = onnx.TensorProto.DataType.Value(to)
    return cast_to(x, dtype_of(int(to)), wide=call.wide, saturate=bool(call.get("saturate", 1)), up=call.get("round_mode", "up"))


@operator("CastLike", keeps_types=True)
def cast_like(call: Call, x: Array, target: Array) -> Array:
    return cast_to(x, target.dtype, wide=call.wide, saturate=bool(call.get("saturate", 1)), up=call.get("round_mode", "up"))


def cast_to(x: Array, dtype: np.dtype[Any], *, wide: bool, saturate: bool = True, up: str = "up") -> Array:
    """Return `x` in `dtype` by the rules of the Cast operator.

    Args:
        x: Array of any type.
        dtype: Type of NumPy or ml_dtypes; objects for strings.
        wide: Floating-point types of arithmetic become float64.
        saturate: A float8 holds its largest value where `x` is beyond it, instead of infinity or NaN.
        up: How float8e8m0 is rounded: "up", "down" or "nearest".
    """
    if wide:
        dtype = widened_dtype(dtype)
    if x.dtype == dtype:
        return x
    if x.dtype.kind == "O":
        return _from_text(x, dtype)
    if dtype.kind == "O":
        return _to_text(x)
    if dtype.name == "float8_e8m0fnu":
        return _to_e8m0(x, dtype, saturate, up)
    if dtype.name.startswith(("float8", "float4")):
        return _to_small_float(x, dtype, saturate)
    if dtype.name in NARROW_INTEGERS:
        return _to_narrow_integer(x, dtype)
    if dtype == np.bool_:
        return x.astype(np.float32) != 0 if is_float(x) and x.dtype.kind != "f" else x != 0
    if is_float(x) and dtype.kind in "iu":
        return _to_integer(x, dtype)
    if x.dtype.kind == "V" or x.dtype.name in NARROW_INTEGERS:
        return x.astype(np.int32).astype(dtype) if "int" in x.dtype.name else x.astype(np.float32).astype(dtype)
    return x.astype(dtype)


def _to_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    """Truncate toward zero; what does not fit keeps its low bits, as a conversion through int64 leaves them."""
    values = x.astype(np.float64) if x.dtype.kind != "f" else x
    if dtype.itemsize == 8:
        return values.astype(dtype)
    return values.astype(np.int64).astype(dtype)


def _to_narrow_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    """Round to nearest (from floats), then keep the low bits, as all casts of integers do."""
    low, high = NARROW_INTEGERS[dtype.name]
    whole = np.rint(x.astype(np.float64)) if is_float(x) else x
    whole = whole.astype(np.int64)
    count = high - low + 1
    return ((whole - low) % count + low).astype(dtype)


def _to_small_float(x: Array, dtype: np.dtype[Any], saturate: bool) -> Array:
    """Round once, to nearest even; infinities and what is too large become the largest value, NaN or infinity."""
    import ml_dtypes

    values = x.astype(np.float64) if x.dtype.name in ("float64", "int64", "int32") else x.astype(np.float32)
    result = values.astype(dtype)
    if dtype.name == "float4_e2m1fn":
        return result
    limits = ml_dtypes.finfo(dtype)
    largest = float(limits.max)
    if saturate:
        # Halfway to the next value that there would be, rounding still leads to the largest.
        beyond = ~np.isnan(values) & (np.abs(values) > largest)
        clipped = np.where(beyond, np.copysign(largest, values), values)
        return clipped.astype(dtype)
    return result


def _to_e8m0(x: Array, dtype: np.dtype[Any], saturate: bool, mode: str) -> Array:
    """float8e8m0 holds powers of two, 2**-127 to 2**127, and NaN."""
    values = np.abs(x.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        mantissa, exponent = np.frexp(values)  # values = mantissa * 2**exponent, 0.5 <= mantissa < 1
    power = exponent - 1
    fraction = mantissa * 2 - 1
    if mode == "up":
        power = power + (fraction > 0)
    elif mode == "nearest":
        power = power + (fraction >= 0.5)
    too_large = power > 127
    power = np.clip(power, -127, 127)
    result = np.ldexp(1.0, power)
    result = np.where(values == 0, 2.0**-127, result)
    bad = np.isnan(values) | (np.zeros(values.shape, bool) if saturate else (too_large | np.isinf(values)))
    result = np.where(np.isinf(values), 2.0**127, result)
    return np.where(bad, np.nan, result).astype(dtype)


def _from_text(x: Array, dtype: np.dtype[Any]) -> Array:
    texts = as_text(x)
    if dtype.kind == "O":
        return texts
    numbers = np.array([float(text) for text in texts.ravel()], np.float64).reshape(x.shape)
    if dtype.kind in "iu":
        return np.array([int(float(text)) for text in texts.ravel()], dtype).reshape(x.shape)
    return cast_to(numbers, dtype, wide=False)


def _to_text(x: Array) -> Array:
    def written(value: Any) -> str:
        if is_float(x):
            number = float(value)
            if np.isnan(number) or np.isinf(number):
                return "NaN" if np.isnan(number) else "INF" if number > 0 else "-INF"
            return str(value) if x.dtype.kind == "f" else str(np.float32(value))
        return str(int(value))

    flat = np.empty(x.size, object)
    flat[:] = [written(value) for value in x.ravel()]
    return flat.reshape(x.shape)


@operator("BitCast", keeps_types=True)
def bit_cast(call: Call, x: Array) -> Array:
    """The bits of `x` as another type of the same width.

    In a float64 evaluation the bits are those of the value rounded to the type that the graph has there; which one that is
    follows from the width of the target.
    """
    target = dtype_of(int(call.get("to")))
    if call.wide and x.dtype == np.float64 and target.itemsize != 8:
        x = x.astype(np.float32 if target.itemsize == 4 else np.float16)
    if x.dtype.name in NARROW_INTEGERS or target.name in NARROW_INTEGERS:
        return _bit_cast_narrow(x, target)
    result = np.ascontiguousarray(x).view(target).reshape(x.shape)
    return result.astype(widened_dtype(target)) if call.wide else result


def _bit_cast_narrow(x: Array, target: np.dtype[Any]) -> Array:
    bits = 4 if "4" in target.name else 2
    raw = (x.astype(np.int32) if "int" in x.dtype.name else x.view(np.uint8).astype(np.int32)) & (2**bits - 1)
    if target.name.startswith("float"):
        return raw.astype(np.uint8).view(target)
    signed = np.where((raw >> (bits - 1)) & 1, raw - 2**bits, raw) if target.name.startswith("int") else raw
    return np.asarray(signed).astype(target)
