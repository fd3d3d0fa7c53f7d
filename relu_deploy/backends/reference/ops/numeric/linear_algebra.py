"""Matrix products, Einsum and determinants."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import is_float
from relu_deploy.tensors import Array


@operator("MatMul")
def matmul(_: Call, a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(a, b))


@operator("Gemm")
def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    a, b = (a.T if call.get("transA", 0) else a), (b.T if call.get("transB", 0) else b)
    return affine(a @ b, c, call.float("alpha", 1.0), call.float("beta", 1.0))


def affine(y: Array, c: Array | None, alpha: float, beta: float) -> Array:
    """Return alpha * y + beta * c in the type of `y`."""
    scaled = y if alpha == 1 else _scaled(y, alpha)
    return scaled if c is None else np.asarray(scaled + (c if beta == 1 else _scaled(c, beta))).astype(y.dtype, copy=False)


def _scaled(x: Array, factor: float) -> Array:
    return np.asarray(x * x.dtype.type(factor)) if is_float(x) else (x * factor).astype(x.dtype)


@operator("Einsum")
def einsum(call: Call, *operands: Array) -> Array:
    equation = call.get("equation").replace(" ", "")
    path: Any = "greedy" if len(operands) > 1 else False
    return np.asarray(np.einsum(equation, *operands, optimize=path)).astype(operands[0].dtype, copy=False)


@operator("Det")
def determinant(_: Call, x: Array) -> Array:
    return np.asarray(np.linalg.det(x)).astype(x.dtype)
