"""Softmax and its family, and normalization over batches, instances, layers, groups and neighbors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.special import in_parallel
from relu_deploy.tensors import Array

__all__ = ["layer_norm", "softmax"]


#: elements of the rows that are normalized at once, so that the intermediate arrays stay in the cache
BLOCK = 2**15


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum(exp(x)) along `axis`."""
    rows = np.moveaxis(x, axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    result = np.empty_like(flat)

    def run(part: slice) -> None:
        out = result[part]
        np.subtract(flat[part], flat[part].max(1, keepdims=True, initial=-np.inf), out=out)
        np.exp(out, out=out)
        out /= out.sum(1, keepdims=True)

    in_parallel(run, len(flat), max(1, BLOCK // max(1, flat.shape[1])))
    return np.moveaxis(result.reshape(rows.shape), -1, axis)


def _log_softmax(x: Array, axis: int) -> Array:
    shifted = x - x.max(axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)))


def _hardmax(x: Array, axis: int) -> Array:
    result = np.zeros_like(x)
    np.put_along_axis(result, np.expand_dims(np.argmax(x, axis), axis), 1, axis)
    return result


def _register_softmax(name: str, function: Callable[[Array, int], Array]) -> None:
    @operator(name, until=12)
    def flattened(call: Call, x: Array) -> Array:
        """Before version 13 the axes from `axis` on count as one."""
        axis = call.get("axis", 1)
        axis = axis + x.ndim if axis < 0 else axis
        return function(x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:])), 1).reshape(x.shape)

    @operator(name, since=13)
    def along_axis(call: Call, x: Array) -> Array:
        return function(x, call.get("axis", -1))


_register_softmax("Softmax", softmax)
_register_softmax("LogSoftmax", _log_softmax)
_register_softmax("Hardmax", _hardmax)


def _per_channel(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


@operator("BatchNormalization", until=13)
def batch_normalization_by_outputs(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Any:
    """Before version 14 a node with more than one output trains; before version 9 `spatial` = 0 gives each element its own."""
    if call.has_output(1):
        y, means, variances = _trained(call, x, scale, bias, mean, variance)
        return y, means, variances, mean, variance
    if call.version < 9 and not call.get("spatial", 1):
        factor = scale / np.sqrt(variance + x.dtype.type(call.float("epsilon", 1e-5)))
        return (x - mean) * factor + bias
    return _normalized(x, scale, bias, mean, variance, call.float("epsilon", 1e-5))


@operator("BatchNormalization", since=14)
def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Any:
    if call.get("training_mode", 0):
        return _trained(call, x, scale, bias, mean, variance)
    return _normalized(x, scale, bias, mean, variance, call.float("epsilon", 1e-5))


def _normalized(x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    return ((x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(bias, x)).astype(x.dtype, copy=False)


def _trained(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    axes = (0, *range(2, x.ndim))
    own_mean, own_variance = x.mean(axes), x.var(axes)
    momentum = call.float("momentum", 0.9)
    y = _normalized(x, scale, bias, own_mean, own_variance, call.float("epsilon", 1e-5))
    kept = mean.dtype.type(momentum)
    return (
        y,
        (mean * kept + own_mean * (1 - kept)).astype(mean.dtype),
        (variance * kept + own_variance * (1 - kept)).astype(variance.dtype),
    )


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    rows = x.reshape(*x.shape[:2], -1)
    centered, spread = _centered(rows, call.float("epsilon", 1e-5))
    centered *= scale.reshape(1, -1, 1) / spread
    centered += bias.reshape(1, -1, 1)
    return centered.reshape(x.shape)


def _centered(rows: Array, epsilon: float) -> tuple[Array, Array]:
    """Return a new array x - mean, and sqrt(variance + epsilon), over the last axis."""
    centered = rows - rows.mean(-1, keepdims=True)
    # Not by BLAS, which would wake its threads for each row.
    variance = np.einsum("...i,...i->...", centered, centered)[..., None] / rows.dtype.type(max(1, rows.shape[-1]))
    return centered, np.sqrt(variance + rows.dtype.type(epsilon))


@operator("LayerNormalization", keeps_types=True)
def layer_normalization(call: Call, x: Array, scale: Array, bias: Array | None = None) -> Any:
    dtype = x.dtype
    if not call.wide and call.get("stash_type", 1) == 1:
        x = x.astype(np.float32)
    axis = call.get("axis", -1) % x.ndim
    if x.dtype == dtype and scale.dtype == dtype:
        return layer_norm(x, axis, call.float("epsilon", 1e-5), scale, bias)
    y, mean, inverse = layer_norm(x, axis, call.float("epsilon", 1e-5))
    # The standardized values are rounded to the input's type before they are scaled, as the specification writes it.
    y = y.astype(dtype) * scale
    return (y if bias is None else y + bias).astype(dtype), mean, inverse


def layer_norm(
    x: Array, axis: int, epsilon: float, scale: Array | None = None, bias: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return `x` standardized over the axes from `axis` on, the mean and 1 / sqrt(variance + epsilon).

    scale, bias: Of the standardized values; they broadcast to the axes from `axis` on.
    """
    size = prod(x.shape[axis:])
    rows = np.ascontiguousarray(x).reshape(-1, size)
    result = np.empty_like(rows)
    mean, inverse = np.empty((len(rows), 1), x.dtype), np.empty((len(rows), 1), x.dtype)
    row_scale, row_bias = (None if one is None else np.broadcast_to(one, x.shape[axis:]).ravel() for one in (scale, bias))

    def run(part: slice) -> None:
        out, spread = result[part], inverse[part]
        np.mean(rows[part], 1, keepdims=True, out=mean[part])
        np.subtract(rows[part], mean[part], out=out)
        # Not by BLAS, which would wake its threads for each row.
        np.einsum("ij,ij->i", out, out, out=spread[:, 0])
        spread /= x.dtype.type(max(1, size))
        spread += x.dtype.type(epsilon)
        np.sqrt(spread, out=spread)
        out /= spread
        np.reciprocal(spread, out=spread)
        if row_scale is not None:
            out *= row_scale
        if row_bias is not None:
            out += row_bias

    in_parallel(run, len(rows), max(1, BLOCK // max(1, size)))
    kept = (*x.shape[:axis], *(1,) * (x.ndim - axis))
    return result.reshape(x.shape), mean.reshape(kept), inverse.reshape(kept)


@operator("RMSNormalization", keeps_types=True)
def rms_normalization(call: Call, x: Array, scale: Array) -> Array:
    dtype = x.dtype
    if not call.wide and call.get("stash_type", 1) == 1:
        x = x.astype(np.float32)
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    spread = np.sqrt(np.square(x).mean(axes, keepdims=True) + x.dtype.type(call.float("epsilon", 1e-5)))
    return ((x / spread).astype(dtype) * scale).astype(np.result_type(dtype, scale.dtype))


@operator("GroupNormalization", keeps_types=True)
def group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Scale and bias are of the groups before version 21, of the channels since."""
    dtype = x.dtype
    if not call.wide:
        x, scale, bias = (value.astype(np.float32) if value.dtype.itemsize < 4 else value for value in (x, scale, bias))
    groups = call.get("num_groups")
    parts = x.reshape(x.shape[0], groups, -1)
    centered, spread = _centered(parts, call.float("epsilon", 1e-5))
    centered /= spread
    y = centered.reshape(x.shape)
    if call.version < 21:
        scale, bias = (np.repeat(value, x.shape[1] // groups) for value in (scale, bias))
    return (y * _per_channel(scale, x) + _per_channel(bias, x)).astype(dtype)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Array) -> Array:
    axes = tuple(call.get("axes", [0, 2, 3]))
    centered = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt(np.square(centered).mean(axes, keepdims=True))
    return np.asarray(centered / (deviation + x.dtype.type(1e-9)))


@operator("LpNormalization")
def lp_normalization(call: Call, x: Array) -> Array:
    """Where the norm is 0, so is the result."""
    axis, p = call.get("axis", -1), call.get("p", 2)
    norm = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt(np.square(x).sum(axis, keepdims=True))
    return np.where(norm == 0, x.dtype.type(0), x / np.where(norm == 0, x.dtype.type(1), norm))


@operator("LRN")
def local_response_normalization(call: Call, x: Array) -> Array:
    size, channels = call.get("size"), x.shape[1]
    sides = ((0, 0), ((size - 1) // 2, size // 2), *((0, 0) for _ in x.shape[2:]))
    squares = np.pad(x * x, sides)
    total = squares[:, :channels].copy()
    for offset in range(1, size):
        total += squares[:, offset : offset + channels]
    alpha, beta, bias = call.float("alpha", 1e-4), call.float("beta", 0.75), call.float("bias", 1.0)
    return np.asarray(x / (bias + alpha / size * total) ** beta).astype(x.dtype)
