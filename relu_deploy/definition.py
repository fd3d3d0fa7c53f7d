"""The definition that every Relu in this project is held to.

    relu(x)  = max(0, x)            element by element, in the dtype of x
    relu6(x) = min(max(0, x), 6)

The formula says nothing about four kinds of IEEE 754 values, and implementations differ there, so the policy is written
down. `relu` follows it to the bit:

    input        relu       relu6      why
    NaN          NaN        NaN        a NaN is a fault upstream; a Relu that swallows it hides the fault
    -0.0         +0.0       +0.0       max(0, x) with 0 = +0.0: one zero behind every Relu, whatever the sign before it
    +inf         +inf       6          max and min say so
    -inf         +0.0       +0.0       max says so
    subnormal    unchanged  unchanged  when positive; negative ones become +0.0. Never flushed

What others do on the CPU (each line is asserted in tests/test_relu.py):

    implementation                 NaN   relu(-0.0)   positive subnormals   dtypes it lacks
    numpy.maximum(x, 0)            NaN   +0.0         kept
    numpy.fmax(x, 0)               0     +0.0         kept
    torch.relu                     NaN   -0.0         kept                  bool
    ONNX Runtime Relu              NaN   -0.0         kept                  int16, int64, bfloat16
    ONNX reference evaluator Relu  NaN   +0.0         kept

-0.0 == +0.0, so the difference is invisible to every comparison of values; it shows in the bits, and after 1/x.

Dtypes: float64, float32, float16, bfloat16 (of ml_dtypes) and the signed integers. Relu on bool or unsigned integers is
refused: the first is meaningless and the second a sign that a tensor has been mislabeled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DTYPES", "relu", "relu6", "relu_derivative"]

#: dtypes that `relu` accepts, by name; bfloat16 is NumPy's only where ml_dtypes has registered it
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")

Array = np.ndarray[Any, np.dtype[Any]]


def _checked(x: Any, function: str) -> Array:
    array = np.asarray(x)
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{function} is defined for {', '.join(DTYPES)}; got {array.dtype.name}")
    return array


def relu(x: Any) -> Array:
    """Return max(0, x), element by element, with the shape and dtype of `x`.

    x: array of any shape, one of `DTYPES` (Python lists of numbers are taken as NumPy takes them).
    NaN propagates, both zeros give +0.0, subnormals are kept (the module's table).
    Raises TypeError for any other dtype.
    Source: the operator's definition in the ONNX specification, Relu-14.

    >>> relu([-2, -1, 0, 1, 2]).tolist()
    [0, 0, 0, 1, 2]
    """
    array = _checked(x, "relu")
    # `array > 0` is False for NaN as well: the second condition is what keeps it. bfloat16 warns when NaN is compared.
    with np.errstate(invalid="ignore"):
        return np.where((array > 0) | (array != array), array, np.zeros((), array.dtype))


def relu6(x: Any) -> Array:
    """Return min(max(0, x), 6), element by element, with the shape and dtype of `x`.

    x: as for `relu`. NaN propagates; +inf gives 6. Raises TypeError for any other dtype.
    Source: Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.
    """
    positive = relu(_checked(x, "relu6"))
    six = np.asarray(6).astype(positive.dtype)
    with np.errstate(invalid="ignore"):
        return np.where(positive > six, six, positive)


def relu_derivative(x: Any, at_zero: float = 1) -> Array:
    """Return d relu(x)/dx, element by element: 1 for x > 0, 0 for x < 0, `at_zero` at x = 0, NaN for NaN.

    x: as for `relu`; the result has its shape and dtype.
    at_zero: any value in [0, 1] is a valid subgradient there. The default, 1, follows the definition "1 for
        non-negative values"; PyTorch, TensorFlow and JAX use 0, and torch.clamp(min=0) uses 1. Both zeros count as 0.
    Raises ValueError when `at_zero` is not in [0, 1] or an integer dtype cannot hold it; TypeError for other dtypes.
    """
    array = _checked(x, "relu_derivative")
    if not 0 <= at_zero <= 1:
        raise ValueError(f"at_zero must lie in [0, 1], the subdifferential of relu at 0; got {at_zero}")
    if np.issubdtype(array.dtype, np.integer) and at_zero not in (0, 1):
        raise ValueError(f"at_zero={at_zero} cannot be held by {array.dtype.name}")
    slope = np.where(array == 0, np.asarray(at_zero).astype(array.dtype), (array > 0).astype(array.dtype))
    return np.where(array != array, array, slope)
