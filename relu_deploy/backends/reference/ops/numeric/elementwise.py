"""Arithmetic, comparison and logic, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.special import erf
from relu_deploy.backends.reference.types import is_float
from relu_deploy.tensors import Array

UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": np.abs, "Neg": np.negative, "Exp": np.exp, "Log": np.log, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil,
    "Round": np.rint, "Sign": np.sign, "Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos,
    "Atan": np.arctan, "Sinh": np.sinh, "Cosh": np.cosh, "Tanh": np.tanh, "Asinh": np.arcsinh, "Acosh": np.arccosh,
    "Atanh": np.arctanh, "IsNaN": np.isnan, "Not": np.logical_not, "BitwiseNot": np.bitwise_not,
}  # fmt: skip


def _register_unary(name: str, function: Callable[[Any], Any]) -> None:
    @operator(name)
    def run(_: Call, x: Array) -> Any:
        return function(x)


def _aligned(call: Call, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the operands of a binary operator; before version 7 `axis` says where the second one's shape starts."""
    if call.version >= 7 or not call.get("broadcast") or b.ndim == 0:
        return a, b
    axis = call.get("axis")
    start = a.ndim - b.ndim if axis is None else axis % a.ndim
    return a, b.reshape(b.shape + (1,) * (a.ndim - start - b.ndim))


def _divide(a: Array, b: Array) -> Array:
    if is_float(a):
        return np.asarray(a / b)
    if a.dtype.kind == "u":
        return np.asarray(a // b)
    # C's division of integers rounds toward zero.
    quotient = a // b
    return np.asarray(quotient + ((a % b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "And": np.logical_and, "Or": np.logical_or,
    "Xor": np.logical_xor, "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}  # fmt: skip


def _register_binary(name: str, function: Callable[[Any, Any], Any]) -> None:
    @operator(name)
    def run(call: Call, a: Array, b: Array) -> Any:
        return function(*_aligned(call, a, b))


for _name, _unary in UNARY.items():
    _register_unary(_name, _unary)
for _name, _binary in BINARY.items():
    _register_binary(_name, _binary)


@operator("Reciprocal")
def reciprocal(_: Call, x: Array) -> Array:
    return np.asarray(1 / x)


@operator("Erf")
def error_function(_: Call, x: Array) -> Array:
    return erf(x) if is_float(x) else erf(x.astype(np.float64)).astype(x.dtype)


@operator("IsInf")
def is_infinite(call: Call, x: Array) -> Array:
    found = np.zeros(x.shape, bool)
    if call.get("detect_positive", 1):
        found |= np.isposinf(x)
    if call.get("detect_negative", 1):
        found |= np.isneginf(x)
    return found


#: powers that a few products make, in a fraction of the time
PRODUCTS: dict[float, Callable[[Array], Array]] = {
    2.0: np.square,
    3.0: lambda x: np.square(x) * x,
    4.0: lambda x: np.square(np.square(x)),
}


@operator("Pow")
def power(call: Call, x: Array, exponent: Array) -> Array:
    x, exponent = _aligned(call, x, exponent)
    if is_float(x):
        whole = float(exponent.reshape(-1)[0]) if exponent.size == 1 and exponent.ndim <= x.ndim else 0.0
        return PRODUCTS[whole](x) if whole in PRODUCTS else np.asarray(np.power(x, exponent.astype(x.dtype)))
    if is_float(exponent) or (exponent < 0).any():
        return np.asarray(np.power(x.astype(np.float64), exponent)).astype(x.dtype)
    return np.asarray(np.power(x, exponent)).astype(x.dtype)


@operator("Mod")
def modulo(call: Call, a: Array, b: Array) -> Array:
    """fmod=1 has the sign of the dividend, fmod=0 that of the divisor."""
    return np.asarray(np.fmod(a, b) if call.get("fmod", 0) else np.mod(a, b)).astype(a.dtype)


@operator("BitShift")
def bit_shift(call: Call, x: Array, count: Array) -> Array:
    """Bits that leave are lost; shifting by the width of the type or more leaves 0 (or the sign)."""
    width = x.dtype.itemsize * 8
    within = np.minimum(count, x.dtype.type(width - 1))
    if call.get("direction") == "LEFT":
        return np.where(count >= width, x.dtype.type(0), np.left_shift(x, within)).astype(x.dtype)
    shifted = np.right_shift(x, within)
    return shifted if x.dtype.kind == "i" else np.where(count >= width, x.dtype.type(0), shifted).astype(x.dtype)


@operator("Max")
def maximum(_: Call, *operands: Array) -> Array:
    return np.asarray(reduce(np.maximum, operands))


@operator("Min")
def minimum(_: Call, *operands: Array) -> Array:
    return np.asarray(reduce(np.minimum, operands))


@operator("Sum")
def total(_: Call, *operands: Array) -> Array:
    return np.asarray(reduce(np.add, operands))


@operator("Mean")
def mean(_: Call, *operands: Array) -> Array:
    return np.asarray(reduce(np.add, operands) / len(operands)).astype(operands[0].dtype)


@operator("Where")
def where(_: Call, condition: Array, x: Array, y: Array) -> Array:
    return np.asarray(np.where(condition, x, y))


@operator("Clip", until=10)
def clip_by_attributes(call: Call, x: Array) -> Array:
    return _clipped(x, call.attributes.get("min"), call.attributes.get("max"))


@operator("Clip", since=11)
def clip(_: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    return _clipped(x, low, high)


def _clipped(x: Array, low: Any, high: Any) -> Array:
    """The upper bound wins where the bounds cross."""
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype).reshape(()))
    if high is not None:
        x = np.minimum(x, np.asarray(high, x.dtype).reshape(()))
    return np.asarray(x)
