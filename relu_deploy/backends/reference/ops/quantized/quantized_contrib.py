"""Quantized operators of com.microsoft: dequantize, compute, quantize; as ONNX Runtime's quantizer writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.layers.normalization import softmax
from relu_deploy.backends.reference.ops.layers.pooling import average_pool
from relu_deploy.backends.reference.ops.numeric.reductions import REDUCTIONS
from relu_deploy.backends.reference.ops.quantized.integer import rows_and_columns
from relu_deploy.backends.reference.ops.quantized.quantization import dequantize, dynamically_quantized, quantize
from relu_deploy.backends.reference.registry import CONTRIB, Call, filled, not_evaluated, operator
from relu_deploy.backends.reference.special import sigmoid
from relu_deploy.backends.reference.windows import Geometry
from relu_deploy.tensors import Array


def _stored(y: Array, scale: Array, zero: Array | None, like: Array) -> Array:
    return quantize(y, scale, zero, like.dtype if zero is None else zero.dtype)


@operator("QLinearAdd", domain=CONTRIB, keeps_types=True)
def qlinear_add(_: Call, *operands: Any) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, *y_zero = operands
    total = dequantize(a, a_scale, a_zero) + dequantize(b, b_scale, b_zero)
    return _stored(total, y_scale, y_zero[0] if y_zero else None, a)


@operator("QLinearMul", domain=CONTRIB, keeps_types=True)
def qlinear_mul(_: Call, *operands: Any) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, *y_zero = operands
    product = dequantize(a, a_scale, a_zero) * dequantize(b, b_scale, b_zero)
    return _stored(product, y_scale, y_zero[0] if y_zero else None, a)


def _unary(x: Array, scales: tuple[Any, ...], compute: Any) -> Array:
    x_scale, x_zero, y_scale, *y_zero = scales
    return _stored(compute(dequantize(x, x_scale, x_zero)), y_scale, y_zero[0] if y_zero else None, x)


@operator("QLinearSigmoid", domain=CONTRIB, keeps_types=True)
def qlinear_sigmoid(_: Call, x: Array, *scales: Any) -> Array:
    return _unary(x, scales, sigmoid)


@operator("QLinearLeakyRelu", domain=CONTRIB, keeps_types=True)
def qlinear_leaky_relu(call: Call, x: Array, *scales: Any) -> Array:
    alpha = call.float("alpha", 0.01)
    return _unary(x, scales, lambda y: np.where(y < 0, y * y.dtype.type(alpha), y))


@operator("QLinearSoftmax", domain=CONTRIB, keeps_types=True)
def qlinear_softmax(call: Call, x: Array, *scales: Any) -> Array:
    """The attribute `opset` says whether the axes from `axis` on count as one, as Softmax did before version 13."""
    axis = call.get("axis", -1)

    def compute(y: Array) -> Array:
        if call.get("opset", 13) >= 13:
            return softmax(y, axis)
        start = axis % y.ndim
        return softmax(y.reshape(int(np.prod(y.shape[:start])), -1)).reshape(y.shape)

    return _unary(x, scales, compute)


@operator("QLinearAveragePool", domain=CONTRIB, keeps_types=True)
def qlinear_average_pool(call: Call, x: Array, *scales: Any) -> Array:
    geometry, include = Geometry.of(call, call.get("kernel_shape")), bool(call.get("count_include_pad", 0))
    last = bool(call.get("channels_last", 0))

    def compute(y: Array) -> Array:
        pooled = average_pool(np.moveaxis(y, -1, 1) if last else y, geometry, include)
        return np.moveaxis(pooled, 1, -1) if last else pooled

    return _unary(x, scales, compute)


@operator("QLinearGlobalAveragePool", domain=CONTRIB, keeps_types=True)
def qlinear_global_average_pool(call: Call, x: Array, *scales: Any) -> Array:
    axes = tuple(range(1, x.ndim - 1)) if call.get("channels_last", 0) else tuple(range(2, x.ndim))
    return _unary(x, scales, lambda y: y.mean(axes, keepdims=True))


@operator("QLinearReduceMean", domain=CONTRIB, keeps_types=True)
def qlinear_reduce_mean(call: Call, x: Array, *scales: Any) -> Array:
    axes = call.get("axes")
    chosen = None if not axes else tuple(axis % x.ndim for axis in axes)
    return _unary(x, scales, lambda y: REDUCTIONS["ReduceMean"](y, chosen, bool(call.get("keepdims", 1))))


@operator("QLinearConcat", domain=CONTRIB, keeps_types=True)
def qlinear_concat(call: Call, y_scale: Array, y_zero: Array, *parts: Any) -> Array:
    values = [dequantize(*parts[index : index + 3]) for index in range(0, len(parts), 3)]
    return quantize(np.concatenate(values, call.get("axis")), y_scale, y_zero, y_zero.dtype)


@operator("QLinearWhere", domain=CONTRIB, keeps_types=True)
def qlinear_where(_: Call, condition: Array, *operands: Any) -> Array:
    x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = operands
    chosen = np.where(condition, dequantize(x, x_scale, x_zero), dequantize(y, y_scale, y_zero))
    return quantize(chosen, z_scale, z_zero, z_zero.dtype)


@operator("QGemm", domain=CONTRIB, keeps_types=True)
def qgemm(call: Call, *operands: Any) -> Array:
    """Without an output scale the result is in floating point. C is int32 with the scale alpha * a_scale * b_scale."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = filled(operands, 9)
    a, b = (a.T if call.get("transA", 0) else a), (b.T if call.get("transB", 0) else b)
    total = rows_and_columns(a, a_zero, b, b_zero)
    if c is not None:
        total = total + c.astype(np.float64)
    factor = a_scale.dtype.type(call.float("alpha", 1.0)) * a_scale * b_scale
    y = total.astype(factor.dtype) * factor
    return np.asarray(y) if y_scale is None else quantize(y, y_scale, y_zero, y_zero.dtype)


@operator("MatMulIntegerToFloat", domain=CONTRIB, keeps_types=True)
def matmul_integer_to_float(_: Call, *operands: Any) -> Array:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = filled(operands, 7)
    y = rows_and_columns(a, a_zero, b, b_zero).astype(a_scale.dtype) * (a_scale * b_scale)
    return np.asarray(y if bias is None else y + bias)


@operator("DynamicQuantizeMatMul", domain=CONTRIB, keeps_types=True)
def dynamic_quantize_matmul(_: Call, *operands: Any) -> Array:
    a, b, b_scale, b_zero, bias = filled(operands, 5)
    levels, scale, zero = dynamically_quantized(a)
    y = rows_and_columns(levels, zero, b, b_zero).astype(a.dtype) * (scale.astype(a.dtype) * b_scale)
    return np.asarray(y if bias is None else y + bias)


@operator("MatMulNBits", domain=CONTRIB)
def matmul_of_packed_bits(call: Call, *operands: Any) -> Array:
    """B: (N, blocks, bytes a block), values of `bits` bits, the lowest first; zero points default to half the range."""
    a, b, scales, zeros, groups, bias = filled(operands, 6)
    bits, block = call.get("bits", 4), call.get("block_size")
    rows, depth = call.get("N"), call.get("K")
    if groups is not None and groups.size:
        raise not_evaluated(call, "com.microsoft.MatMulNBits with groups (g_idx)")
    blocks = -(-depth // block)
    levels = _unpacked(b.reshape(rows, -1), bits)[:, : blocks * block].reshape(rows, blocks, block).astype(a.dtype)
    if zeros is None:
        offset: Any = a.dtype.type(2 ** (bits - 1))
    elif zeros.dtype == np.uint8:
        offset = _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks, None].astype(a.dtype)
    else:
        offset = zeros.reshape(rows, blocks, 1).astype(a.dtype)
    weights = ((levels - offset) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :depth]
    y = a @ weights.T.astype(a.dtype)
    return np.asarray(y if bias is None else y + bias)


def _unpacked(packed: Array, bits: int) -> Array:
    """Return the values of `bits` bits that the bytes of each row hold."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)).reshape(packed.shape[0], -1)
