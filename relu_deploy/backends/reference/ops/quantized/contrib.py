"""Fused operators of com.microsoft: what ONNX Runtime's graph optimizer puts in the place of several nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.layers.activations import gelu_by_erf, gelu_by_tanh
from relu_deploy.backends.reference.ops.layers.convolution import convolve
from relu_deploy.backends.reference.ops.layers.normalization import layer_norm, softmax
from relu_deploy.backends.reference.ops.layers.pooling import max_pool
from relu_deploy.backends.reference.ops.numeric.linear_algebra import affine
from relu_deploy.backends.reference.registry import CONTRIB, Call, filled, not_evaluated, operator
from relu_deploy.backends.reference.special import log1p_exp, sigmoid
from relu_deploy.backends.reference.windows import Geometry
from relu_deploy.tensors import Array


def _activated(call: Call, y: Array, parameters: list[float]) -> Array:
    """Return the activation that was fused into a node. parameters: its attributes, in the order of its schema."""
    name = call.get("activation", "")
    first, second = ([y.dtype.type(value) for value in parameters] + [y.dtype.type(0)] * 2)[:2]
    if name == "Relu":
        return np.asarray(np.maximum(y, 0))
    if name == "LeakyRelu":
        return np.where(y < 0, y * first, y)
    if name == "Clip":
        return np.asarray(np.clip(y, first, second))
    if name == "HardSigmoid":
        return np.asarray(np.clip(first * y + second, 0, 1))
    simple: dict[str, Callable[[Array], Any]] = {
        "": lambda x: x,
        "Tanh": np.tanh,
        "Sigmoid": sigmoid,
        "Softplus": log1p_exp,
        "Softsign": lambda x: x / (1 + np.abs(x)),
    }
    if name not in simple:
        raise not_evaluated(call, f"the fused activation {name!r}")
    return np.asarray(simple[name](y))


@operator("FusedConv", domain=CONTRIB)
def fused_conv(call: Call, x: Array, w: Array, b: Array | None = None, z: Array | None = None) -> Array:
    y = convolve(x, w, Geometry.of(call, w.shape[2:]), call.get("group", 1))
    y = y if b is None else y + b.reshape(1, -1, *(1,) * (x.ndim - 2))
    y = y if z is None else y + z
    return _activated(call, y, call.get("activation_params") or [])


@operator("NhwcFusedConv", domain=CONTRIB)
def nhwc_fused_conv(call: Call, x: Array, w: Array, b: Array | None = None, z: Array | None = None) -> Array:
    first = np.moveaxis(x, -1, 1)
    return np.moveaxis(fused_conv(call, first, w, b, None if z is None else np.moveaxis(z, -1, 1)), 1, -1)


@operator("NhwcMaxPool", domain=CONTRIB)
def nhwc_max_pool(call: Call, x: Array) -> Array:
    return np.moveaxis(max_pool(call, np.moveaxis(x, -1, 1)), 1, -1)


@operator("FusedGemm", domain=CONTRIB)
def fused_gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    a, b = (a.T if call.get("transA", 0) else a), (b.T if call.get("transB", 0) else b)
    y = affine(a @ b, c, call.float("alpha", 1.0), call.float("beta", 1.0))
    parameters = [call.get(f"activation_{name}") for name in ("alpha", "beta")]
    return _activated(call, y, [value for value in parameters if value is not None])


@operator("FusedMatMul", "TransposeMatMul", domain=CONTRIB)
def fused_matmul(call: Call, a: Array, b: Array) -> Array:
    """transBatch moves the first axis of an operand before its last two, before the last two are swapped or not."""
    parts = []
    for operand, name in ((a, "A"), (b, "B")):
        x = np.moveaxis(operand, 0, -2) if call.get(f"transBatch{name}", 0) else operand
        parts.append(np.swapaxes(x, -1, -2) if call.get(f"trans{name}", 0) and x.ndim > 1 else x)
    return affine(np.asarray(parts[0] @ parts[1]), None, call.float("alpha", 1.0), 1.0)


@operator("Gelu", domain=CONTRIB)
def gelu(_: Call, x: Array) -> Array:
    return gelu_by_erf(x)


@operator("BiasGelu", domain=CONTRIB)
def bias_gelu(_: Call, x: Array, bias: Array) -> Array:
    return gelu_by_erf(x + bias)


@operator("FastGelu", domain=CONTRIB)
def fast_gelu(_: Call, x: Array, bias: Array | None = None) -> Array:
    return gelu_by_tanh(x if bias is None else x + bias)


@operator("QuickGelu", domain=CONTRIB)
def quick_gelu(call: Call, x: Array) -> Array:
    return x * sigmoid(x * x.dtype.type(call.float("alpha", 1.702)))


@operator("BiasSoftmax", domain=CONTRIB)
def bias_softmax(call: Call, x: Array, bias: Array) -> Array:
    """The axes from `axis` on count as one; the bias broadcasts to them from the right or from the left."""
    axis = call.get("axis", 1) % x.ndim
    if not call.get("is_inner_broadcast", 1) and bias.ndim < x.ndim:
        bias = bias.reshape(*bias.shape, *(1,) * (x.ndim - bias.ndim))
    return softmax((x + bias).reshape(int(np.prod(x.shape[:axis])), -1)).reshape(x.shape)


def _skip_total(x: Array, skip: Array, bias: Array | None) -> Array:
    total = x + skip
    return total if bias is None else total + bias


@operator("SkipLayerNormalization", domain=CONTRIB)
def skip_layer_normalization(call: Call, *operands: Any) -> tuple[Any, ...]:
    x, skip, gamma, beta, bias = filled(operands, 5)
    total = _skip_total(x, skip, bias)
    y, mean, inverse = layer_norm(total, total.ndim - 1, call.float("epsilon", 1e-12))
    return (y * gamma if beta is None else y * gamma + beta), mean, inverse, total


@operator("SkipSimplifiedLayerNormalization", domain=CONTRIB)
def skip_simplified_layer_normalization(call: Call, *operands: Any) -> tuple[Any, ...]:
    x, skip, gamma, bias = filled(operands, 4)
    total = _skip_total(x, skip, bias)
    y, inverse = _root_mean_square(total, total.ndim - 1, call.float("epsilon", 1e-12))
    return y * gamma, None, inverse, total


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=CONTRIB)
def simplified_layer_normalization(call: Call, x: Array, scale: Array) -> tuple[Array, Array]:
    y, inverse = _root_mean_square(x, call.get("axis", -1) % x.ndim, call.float("epsilon", 1e-5))
    return y * scale, inverse


def _root_mean_square(x: Array, axis: int, epsilon: float) -> tuple[Array, Array]:
    axes = tuple(range(axis, x.ndim))
    inverse = 1 / np.sqrt(np.square(x).mean(axes, keepdims=True) + x.dtype.type(epsilon))
    return x * inverse, np.asarray(inverse)


@operator("EmbedLayerNormalization", domain=CONTRIB)
def embed_layer_normalization(call: Call, *operands: Any) -> tuple[Any, ...]:
    """Word, position and segment embeddings, added and normalized; the mask's row sums are the lengths."""
    ids, segments, words, positions, segment_table, gamma, beta, mask, places = filled(operands, 9)
    index = np.arange(ids.shape[1]) if places is None else places
    total = words[ids] + positions[index]
    if segments is not None and segment_table is not None:
        total = total + segment_table[segments]
    y, _, _ = layer_norm(total, 2, call.float("epsilon", 1e-12))
    lengths = np.zeros(ids.shape[0], np.int32) if mask is None else mask.sum(1).astype(np.int32)
    return y * gamma + beta, lengths, total


@operator("Attention", domain=CONTRIB)
def attention(call: Call, *operands: Any) -> Array:
    """Self-attention whose weights for query, key and value lie side by side: x (N, L, I), w (I, 3 D)."""
    x, w, bias, mask, past, added = filled(operands, 6)[:6]
    if past is not None or call.get("do_rotary", 0) or call.has_output(1):
        raise not_evaluated(call, "com.microsoft.Attention with past keys or rotary embedding")
    y = x @ w if bias is None else x @ w + bias
    sizes = call.get("qkv_hidden_sizes") or [y.shape[-1] // 3] * 3
    parts = np.split(y, [sizes[0], sizes[0] + sizes[1]], -1)
    return _heads_attended(call, parts, mask, added)


@operator("MultiHeadAttention", domain=CONTRIB)
def multi_head_attention(call: Call, *operands: Any) -> Array:
    query, key, value, bias, mask, added, *past = filled(operands, 8)
    if any(item is not None for item in past) or call.has_output(1) or key is None or key.ndim != 3:
        raise not_evaluated(call, "com.microsoft.MultiHeadAttention with packed or past keys")
    parts = [query, key, value]
    if bias is not None:
        sizes = np.cumsum([part.shape[-1] for part in parts])[:-1]
        parts = [part + share for part, share in zip(parts, np.split(bias, sizes), strict=True)]
    return _heads_attended(call, parts, mask, added)


def _heads_attended(call: Call, parts: list[Array], mask: Array | None, added: Array | None) -> Array:
    heads = call.get("num_heads")
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in parts)
    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(call.get("scale") or 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + _masked(call, mask, scores)
    if added is not None:
        scores = scores + added
    if call.get("unidirectional", 0):
        future = np.triu(np.ones(scores.shape[-2:], bool), 1 + scores.shape[-1] - scores.shape[-2])
        scores = np.where(future, -np.inf, scores).astype(scores.dtype)
    return (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(parts[0].shape[0], parts[0].shape[1], -1)


def _masked(call: Call, mask: Array, scores: Array) -> Array:
    """Return what is added to the scores: mask (N,) of lengths, (N, keys) or (N, queries, keys) of 0 and 1."""
    if mask.ndim == 1 and mask.size == scores.shape[0]:
        mask = (np.arange(scores.shape[-1])[None] < mask[:, None]).astype(np.int32)
    if mask.ndim not in (2, 3) or mask.shape[0] != scores.shape[0]:
        raise not_evaluated(call, f"an attention mask of shape {mask.shape}")
    whole = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    return np.asarray((1 - whole.astype(scores.dtype)) * scores.dtype.type(call.float("mask_filter_value", -10000.0)))
