"""ONNX element types as NumPy dtypes, and the widening of floating-point types to float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["HALF", "as_text", "dtype_of", "element_type", "is_float", "narrowed", "widened", "widened_dtype"]

#: floating-point types that arithmetic is done in; narrower ones (float8, float4) are storage formats and are never widened
WIDENED = ("float32", "float16", "bfloat16")
#: types whose arithmetic runtimes do in float32
HALF = ("float16", "bfloat16")
#: onnx.TensorProto.STRING
STRING = 8


@cache
def dtype_of(element_type: int) -> np.dtype[Any]:
    """Return the NumPy dtype (of NumPy or ml_dtypes) of an ONNX `TensorProto.DataType`; strings are objects."""
    import onnx_ir as ir

    return np.dtype(object) if element_type == STRING else np.dtype(ir.DataType(element_type).numpy())


@cache
def element_type(dtype: np.dtype[Any]) -> int:
    """Return the ONNX `TensorProto.DataType` of a NumPy dtype."""
    import onnx_ir as ir

    return STRING if dtype.kind in "OUS" else int(ir.DataType.from_numpy(dtype))


def widened_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float64 for the floating-point types of arithmetic, any other type as it is."""
    return np.dtype(np.float64) if dtype.name in WIDENED else dtype


def widened(value: Any) -> Any:
    """Return an array, or every array of a sequence, with floating-point elements in float64."""
    if isinstance(value, (list, tuple)):
        return [widened(item) for item in value]
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.name in WIDENED else value


def narrowed(value: Any) -> Any:
    """Return a float64 array in float32, anything else as it is."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


def is_float(value: Any) -> bool:
    """Return whether `value` is an array of a floating-point type, including those of ml_dtypes."""
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or "float" in value.dtype.name)


def as_text(array: Array) -> Array:
    """Return an array of strings as objects of type `str`, decoding UTF-8 bytes."""
    flat = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
    result = np.empty(len(flat), object)
    result[:] = flat
    return result.reshape(array.shape)
