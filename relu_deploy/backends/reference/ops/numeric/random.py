"""Random operators. A node draws from its `seed`, or from its name when it has none, so every evaluation draws the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


def _generator(call: Call) -> np.random.RandomState:
    assert call.frame is not None, "a random operator runs inside a graph"
    return call.frame.evaluation.generator(call.name, call.get("seed"))


def _type(call: Call, like: Array | None = None) -> np.dtype[Any]:
    default = np.dtype(np.float64 if call.wide else np.float32)
    return call.dtype("dtype") or (like.dtype if like is not None else default)


def _normal(call: Call, shape: Any, dtype: np.dtype[Any]) -> Array:
    return _generator(call).normal(call.float("mean", 0.0), call.float("scale", 1.0), shape).astype(dtype)


def _uniform(call: Call, shape: Any, dtype: np.dtype[Any]) -> Array:
    return _generator(call).uniform(call.float("low", 0.0), call.float("high", 1.0), shape).astype(dtype)


@operator("RandomNormal", keeps_types=True, random=True)
def random_normal(call: Call) -> Array:
    return _normal(call, call.get("shape"), _type(call))


@operator("RandomNormalLike", keeps_types=True, random=True)
def random_normal_like(call: Call, x: Array) -> Array:
    return _normal(call, x.shape, _type(call, x))


@operator("RandomUniform", keeps_types=True, random=True)
def random_uniform(call: Call) -> Array:
    return _uniform(call, call.get("shape"), _type(call))


@operator("RandomUniformLike", keeps_types=True, random=True)
def random_uniform_like(call: Call, x: Array) -> Array:
    return _uniform(call, x.shape, _type(call, x))


@operator("Bernoulli", keeps_types=True, random=True)
def bernoulli(call: Call, x: Array) -> Array:
    return (_generator(call).uniform(size=x.shape) < x).astype(call.dtype("dtype") or x.dtype)


@operator("Multinomial", keeps_types=True, random=True)
def multinomial(call: Call, x: Array) -> Array:
    """x: unnormalized log probabilities (N, classes). Returns (N, sample_size) of class numbers."""
    powers = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    edges = np.cumsum(powers / powers.sum(1, keepdims=True), 1)
    draws = _generator(call).uniform(size=(x.shape[0], call.get("sample_size", 1)))
    found = (draws[:, :, None] >= edges[:, None, :]).sum(-1)
    return np.minimum(found, x.shape[1] - 1).astype(call.dtype("dtype") or np.int32)


@operator("Dropout", since=12, keeps_types=True, random=True)
def dropout(call: Call, x: Array, ratio: Array | None = None, training: Array | None = None) -> tuple[Array, Array]:
    """In training a share `ratio` of the elements becomes 0 and the others are divided by 1 - ratio."""
    share = 0.5 if ratio is None else float(ratio)
    if training is None or not bool(training) or share == 0:
        return x, np.ones(x.shape, bool)
    kept = np.asarray(_generator(call).uniform(size=x.shape) >= share)
    return np.where(kept, x / x.dtype.type(1 - share), x.dtype.type(0)), kept
