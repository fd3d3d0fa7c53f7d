"""Activation functions with the constants of the ONNX specification."""

from __future__ import annotations

import math

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.special import erf, log1p_exp, sigmoid
from relu_deploy.tensors import Array


@operator("Relu")
def relu(_: Call, x: Array) -> Array:
    return np.asarray(np.maximum(x, x.dtype.type(0)))


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Array) -> Array:
    alpha = x.dtype.type(call.float("alpha", 0.01))
    if 0 < alpha <= 1:
        # The larger of both: many times as fast as a choice by sign.
        return np.asarray(np.maximum(x, x * alpha))
    return np.asarray(np.where(x < 0, x * alpha, x))


@operator("PRelu")
def parametric_relu(call: Call, x: Array, slope: Array) -> Array:
    if call.version < 7 and slope.size > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return np.where(x < 0, x * slope, x).astype(x.dtype)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Array) -> Array:
    return np.where(x > x.dtype.type(call.float("alpha", 1.0)), x, x.dtype.type(0))


@operator("Elu")
def elu(call: Call, x: Array) -> Array:
    return np.where(x < 0, x.dtype.type(call.float("alpha", 1.0)) * np.expm1(np.minimum(x, 0)), x)


@operator("Celu")
def celu(call: Call, x: Array) -> Array:
    alpha = x.dtype.type(call.float("alpha", 1.0))
    return np.asarray(np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha)))


@operator("Selu", until=5)
def selu_of_first_version(call: Call, x: Array) -> Array:
    return _selu(x, call.float("alpha", 1.6732), call.float("gamma", 1.0507))


@operator("Selu", since=6)
def selu(call: Call, x: Array) -> Array:
    return _selu(x, call.float("alpha", 1.67326319217681884765625), call.float("gamma", 1.05070102214813232421875))


def _selu(x: Array, alpha: float, gamma: float) -> Array:
    return np.asarray(x.dtype.type(gamma) * np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0))))


@operator("Sigmoid")
def sigmoid_operator(_: Call, x: Array) -> Array:
    return sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Array) -> Array:
    alpha, beta = x.dtype.type(call.float("alpha", 0.2)), x.dtype.type(call.float("beta", 0.5))
    return np.asarray(np.clip(alpha * x + beta, x.dtype.type(0), x.dtype.type(1)))


@operator("HardSwish")
def hard_swish(_: Call, x: Array) -> Array:
    return np.asarray(x * np.clip(x / 6 + x.dtype.type(0.5), x.dtype.type(0), x.dtype.type(1)))


@operator("Softplus")
def softplus(_: Call, x: Array) -> Array:
    return log1p_exp(x)


@operator("Softsign")
def softsign(_: Call, x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


@operator("Mish")
def mish(_: Call, x: Array) -> Array:
    return np.asarray(x * np.tanh(log1p_exp(x)))


@operator("Swish")
def swish(call: Call, x: Array) -> Array:
    return np.asarray(x * sigmoid(x.dtype.type(call.float("alpha", 1.0)) * x))


@operator("Shrink")
def shrink(call: Call, x: Array) -> Array:
    bias, limit = call.float("bias", 0.0), call.float("lambd", 0.5)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0)).astype(x.dtype)


@operator("Gelu")
def gelu(call: Call, x: Array) -> Array:
    return gelu_by_tanh(x) if call.get("approximate", "none") == "tanh" else gelu_by_erf(x)


def gelu_by_erf(x: Array) -> Array:
    """Return x Φ(x), Φ the cumulative normal distribution."""
    return np.asarray(x * (erf(x * x.dtype.type(math.sqrt(0.5))) + 1) * x.dtype.type(0.5))


def gelu_by_tanh(x: Array) -> Array:
    """Return the approximation of `gelu_by_erf` with a hyperbolic tangent."""
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return np.asarray(x * (np.tanh(inner) + 1) * x.dtype.type(0.5))
